from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given, strategies as st

from converters.rlds.tfrecord import frame, masked_crc32c, read_records
from pipeline.errors import DataError

HEADER, FOOTER = 12, 4
RECORDS = [b"first", b"", b"the third"]
UNREADABLE = r"x.tfrecord: expected a TFRecord file that can be read; found {}\. .* allow reading"


def read(path: Path, skip: int = 0) -> list[bytes]:
    return [bytes(record) for record in read_records(epath.Path(path), skip=skip)]


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
    with pytest.raises(DataError, match=UNREADABLE.format("No such file or directory")):
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


# --- skipping


@pytest.mark.parametrize("skip", range(6))
def test_skipped_records_are_passed_over(tmp_path: Path, skip: int) -> None:
    path = written(tmp_path, b"".join(map(frame, RECORDS)))
    assert read(path, skip) == RECORDS[skip:]


@pytest.mark.parametrize("offset", [HEADER, HEADER + 4, HEADER + 5, HEADER + 8])
def test_the_data_of_a_skipped_record_is_not_checked(tmp_path: Path, offset: int) -> None:
    content = bytearray(b"".join(map(frame, RECORDS)))
    content[offset] ^= 0x10
    path = written(tmp_path, bytes(content))
    assert read(path, 1) == RECORDS[1:]
    with pytest.raises(DataError, match="record 0, data: expected CRC32C"):
        read(path)


@pytest.mark.parametrize("offset", [0, 7, 8, HEADER - 1])
def test_the_length_of_a_skipped_record_is_checked(tmp_path: Path, offset: int) -> None:
    content = bytearray(b"".join(map(frame, RECORDS)))
    content[offset] ^= 0x10
    with pytest.raises(DataError, match=r"record 0, length: expected CRC32C .*; found"):
        read(written(tmp_path, bytes(content)), 2)


def test_skipped_and_later_records_are_named_by_their_place(tmp_path: Path) -> None:
    content = b"".join(map(frame, RECORDS)) + frame(b"last")[:-1]
    with pytest.raises(DataError, match="record 3: expected 8 bytes; found 7 bytes"):
        read(written(tmp_path, content), 2)


def test_a_file_without_permission_is_named(tmp_path: Path, as_nobody: Callable) -> None:
    path = written(tmp_path, frame(b"secret"))
    path.chmod(0o000)
    with as_nobody(), pytest.raises(DataError, match=UNREADABLE.format("Permission denied")):
        read(path)


def test_a_folder_is_no_file_to_read(tmp_path: Path) -> None:
    (tmp_path / "x.tfrecord").mkdir()
    with pytest.raises(DataError, match=UNREADABLE.format("Is a directory")):
        read(tmp_path / "x.tfrecord")
