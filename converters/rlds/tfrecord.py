"""TFRecord framing: length, masked CRC32C of the length, data, masked CRC32C of the data.

Source: the format as documented in `tensorflow/core/lib/io/record_writer.h`.
"""

import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
from etils import epath

from pipeline.errors import DataError
from pipeline.files import special_file

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
# A CRC of data that itself holds CRCs is weak, so TFRecord rotates and adds this constant.
_MASK_DELTA = 0xA282EAD8

_DECOMPRESS = "Decompress every shard of the split in place: {}."
_OTHER_CONTENTS = {
    b"\x1f\x8b": ("a gzip-compressed file", _DECOMPRESS.format("mv FILE FILE.gz; gunzip FILE.gz")),
    b"\x28\xb5\x2f\xfd": ("a zstd-compressed file", _DECOMPRESS.format("zstd -d FILE -o COPY")),
    # Three headers of zlib: fastest, default and best compression.
    b"\x78\x01": ("a zlib-compressed file", _DECOMPRESS.format("with Python's zlib")),
    b"\x78\x9c": ("a zlib-compressed file", _DECOMPRESS.format("with Python's zlib")),
    b"\x78\xda": ("a zlib-compressed file", _DECOMPRESS.format("with Python's zlib")),
    b"PK\x03\x04": ("a zip archive", "Unpack it."),
    b"version http": ("a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
    b"<": ("a web page, not the file", "Fetch the file again, and look at what was sent."),
}
"""What a file that was named as a shard may be, by its first bytes: words, and what to do."""


def read_records(path: epath.Path, *, skip: int = 0) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, in order, every checksum verified.

    Args:
      path: The file.
      skip: Records at its beginning that are passed over; of their checksums only the length's.

    Raises:
      DataError: Where the file is missing or may not be read, ends inside a record, or a checksum
        differs.
    """
    for record in scan_records(path, skip=skip):
        if isinstance(record, DataError):
            raise record
        yield record
        # Otherwise two records are in memory at once.
        del record  # before the next one is read


def scan_records(path: epath.Path, *, skip: int = 0) -> Iterator[bytes | DataError]:
    """Yields the records of a TFRecord file as `read_records` does, and continues behind bad data.

    In the place of a record whose own bytes are corrupt it yields the error: its length, which has
    a checksum of its own, says where the next one begins.

    Raises:
      DataError: Where the rest of the file cannot be read.
    """
    found = special_file(path)
    try:
        if found is None:
            with path.open("rb") as file:
                yield from _scan(file, path.stat().length, str(path), skip)
            return
    except OSError as error:
        found = error.strerror or str(error)
    raise DataError(
        where=str(path),
        expected="a TFRecord file that can be read",
        found=found,
        remedy="Fetch the file again, or allow reading it.",
    )


def _scan(file: Any, num_bytes: int, path: str, skip: int) -> Iterator[bytes | DataError]:
    index = end = 0
    while header := file.read(_HEADER.size):
        where = f"{path}, record {index}"
        # Padded, so that a truncated header still unpacks and gets its own message below.
        length, length_crc = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        error = _crc_error(header[:8], length_crc, f"{where}, length")
        if len(header) < _HEADER.size:
            error = _corrupt(where, "a record header of 12 bytes", f"{len(header)} bytes")
        if error is not None:
            # What is no TFRecord at all shows in the first header; later ones are corruption.
            raise (_other_content(header, path) if index == 0 else None) or error
        start = end + _HEADER.size
        end = start + length + _FOOTER.size
        if end > num_bytes:  # before anything of that size is asked for
            needed, left = length + _FOOTER.size, num_bytes - start
            raise _corrupt(where, f"{needed} bytes", f"{left} bytes")
        # Seeks over the data; the checksum of the length was still verified.
        if index < skip:
            file.seek(end)
        else:
            yield _read_data(file, length, where)
        index += 1


def _other_content(header: bytes, path: str) -> DataError | None:
    """The error for what is no TFRecord file at all, by its first bytes."""
    for start, (content, remedy) in _OTHER_CONTENTS.items():
        if header.startswith(start):
            return DataError(
                where=path,
                expected="a TFRecord file without compression",
                found=f"{content}: it starts with {start.hex(' ')}",
                remedy=remedy,
            )
    return None


def _read_data(file: Any, length: int, where: str) -> bytes | DataError:
    data = file.read(length)
    footer = file.read(_FOOTER.size)
    found = len(data) + len(footer)
    if found < length + _FOOTER.size:
        # The file may be shorter than its listed size, such as one that is still being copied.
        raise _corrupt(where, f"{length + _FOOTER.size} bytes", f"{found} bytes")
    # The error is returned, not raised: the length was valid, so the next record can be found.
    return _crc_error(data, _FOOTER.unpack(footer)[0], f"{where}, data") or data


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


def _crc_error(data: bytes, expected: int, where: str) -> DataError | None:
    found = masked_crc32c(data)
    if found == expected:
        return None
    return _corrupt(where, f"CRC32C {expected:08x}", f"{found:08x}")


def _corrupt(where: str, expected: str, found: str) -> DataError:
    return DataError(
        where=where,
        expected=expected,
        found=found,
        remedy="The file is corrupt or its download incomplete: fetch it again.",
    )
