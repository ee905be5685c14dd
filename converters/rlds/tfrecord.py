"""TFRecord framing: length, masked CRC32C of the length, data, masked CRC32C of the data.

Source: the format as documented in `tensorflow/core/lib/io/record_writer.h`.
"""

import os
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
from etils import epath

from pipeline.errors import DataError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def read_records(path: epath.Path, *, skip: int = 0) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, in order, every checksum verified.

    Args:
      path: The file.
      skip: Records at its beginning that are passed over; of their checksums only the length's.

    Raises:
      DataError: Where the file is missing or may not be read, ends inside a record, or a checksum
        differs.
    """
    try:
        with path.open("rb") as file:
            yield from _read(file, str(path), skip)
    except OSError as error:
        raise DataError(
            where=str(path),
            expected="a TFRecord file that can be read",
            found=error.strerror or str(error),
            remedy="Fetch the file again, or allow reading it.",
        ) from error


def _read(file: Any, path: str, skip: int) -> Iterator[bytes]:
    index = 0
    while header := file.read(_HEADER.size):
        where = f"{path}, record {index}"
        if len(header) < _HEADER.size:
            raise _damaged(where, "a record header of 12 bytes", f"{len(header)} bytes")
        length, length_crc = _HEADER.unpack(header)
        _check_crc(header[:8], length_crc, f"{where}, length")
        if index < skip:
            file.seek(length + _FOOTER.size, os.SEEK_CUR)
        else:
            yield _read_data(file, length, where)
        index += 1


def _read_data(file: Any, length: int, where: str) -> bytes:
    data = file.read(length)
    footer = file.read(_FOOTER.size)
    found = len(data) + len(footer)
    if found < length + _FOOTER.size:
        raise _damaged(where, f"{length + _FOOTER.size} bytes", f"{found} bytes")
    _check_crc(data, _FOOTER.unpack(footer)[0], f"{where}, data")
    return data


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
