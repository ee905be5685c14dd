"""TFRecord framing: length, masked CRC32C of the length, data, masked CRC32C of the data.

Source: the format as documented in `tensorflow/core/lib/io/record_writer.h`.
"""

import struct
from collections.abc import Iterator

import google_crc32c
from etils import epath

from pipeline.errors import DataError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def read_records(path: epath.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, in order, every checksum verified.

    Raises:
      DataError: Where the file is missing, ends inside a record, or a checksum differs.
    """
    if not path.exists():
        raise _damaged(str(path), "a TFRecord file", "no such file")
    with path.open("rb") as file:
        index = 0
        while header := file.read(_HEADER.size):
            where = f"{path}, record {index}"
            if len(header) < _HEADER.size:
                raise _damaged(where, "a record header of 12 bytes", f"{len(header)} bytes")
            length, length_crc = _HEADER.unpack(header)
            _check_crc(header[:8], length_crc, f"{where}, length")
            data = file.read(length)
            footer = file.read(_FOOTER.size)
            found = len(data) + len(footer)
            if found < length + _FOOTER.size:
                raise _damaged(where, f"{length + _FOOTER.size} bytes", f"{found} bytes")
            _check_crc(data, _FOOTER.unpack(footer)[0], f"{where}, data")
            yield data
            index += 1


def masked_crc32c(data: bytes) -> int:
    """The checksum that TFRecord stores: CRC32C rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record as it stands in a file; the inverse of `read_records`."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, _FOOTER.pack(masked_crc32c(length)), data, _FOOTER.pack(masked_crc32c(data))]
    )


def _check_crc(data: bytes, expected: int, where: str) -> None:
    found = masked_crc32c(data)
    if found != expected:
        raise _damaged(where, f"CRC32C {expected:08x}", f"{found:08x}")


def _damaged(where: str, expected: str, found: str) -> DataError:
    return DataError(
        where=where,
        expected=expected,
        found=found,
        remedy="The file is damaged or its download incomplete: fetch it again.",
    )
