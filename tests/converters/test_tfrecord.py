from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from converters.rlds.tfrecord import frame, masked_crc32c, read_records
from pipeline.errors import DataError

HEADER, FOOTER = 12, 4
RECORDS = [b"first", b"", b"the third"]


def read(path: Path) -> list[bytes]:
    return list(read_records(epath.Path(path)))


def written(directory: Path, content: bytes) -> Path:
    path = directory / "x.tfrecord"
    path.write_bytes(content)
    return path


def test_the_checksum_is_the_masked_crc32c() -> None:
    crc = 0xE3069283  # CRC32C of the digits, as its standard publishes it
    rotated = (crc >> 15) | (crc << 17) & 0xFFFFFFFF
    assert masked_crc32c(b"123456789") == (rotated + 0xA282EAD8) & 0xFFFFFFFF == 0xC78AB0E5


@given(records=st.lists(st.binary(max_size=200)))
def test_reading_is_the_inverse_of_framing(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.tfrecord"
    path.write_bytes(b"".join(map(frame, records)))
    assert read(path) == records


def test_an_empty_file_holds_no_record(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"")) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.tfrecord: .* found no such file\. .* fetch it again"):
        read(tmp_path / "x.tfrecord")


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (0, "record 1, length: expected CRC32C"),
        (7, "record 1, length: expected CRC32C"),
        (8, "record 1, length: expected CRC32C"),
        (HEADER, "record 1, data: expected CRC32C"),
        (HEADER + 5, "record 1, data: expected CRC32C"),
    ],
)
def test_a_flipped_bit_is_found(tmp_path: Path, offset: int, message: str) -> None:
    content = bytearray(frame(b"whole") + frame(b"other"))
    content[len(frame(b"whole")) + offset] ^= 0x10
    records = read_records(epath.Path(written(tmp_path, bytes(content))))
    assert next(records) == b"whole"
    with pytest.raises(DataError, match=message):
        next(records)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (1, "record 3: expected a record header of 12 bytes; found 1 bytes"),
        (HEADER - 1, "record 3: expected a record header of 12 bytes; found 11 bytes"),
        (HEADER, "record 3: expected 8 bytes; found 0 bytes"),
        (HEADER + 3, "record 3: expected 8 bytes; found 3 bytes"),
        (HEADER + 4 + FOOTER - 1, "record 3: expected 8 bytes; found 7 bytes"),
    ],
)
def test_a_file_that_ends_inside_a_record_is_refused(
    tmp_path: Path, kept: int, message: str
) -> None:
    content = b"".join(map(frame, RECORDS)) + frame(b"last")[:kept]
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, content))


def test_every_truncation_but_between_records_is_refused(tmp_path: Path) -> None:
    content = b"".join(map(frame, RECORDS))
    whole = {len(b"".join(map(frame, RECORDS[:n]))): n for n in range(len(RECORDS) + 1)}
    for kept in range(len(content) + 1):
        path = written(tmp_path, content[:kept])
        if kept in whole:
            assert read(path) == RECORDS[: whole[kept]]
        else:
            with pytest.raises(DataError, match="download incomplete"):
                read(path)
