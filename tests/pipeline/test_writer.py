import pathlib

import pytest
import xxhash
from array_record.python import array_record_module

from pipeline.writer import ShardWriter


def files(directory: pathlib.Path) -> list[str]:
    return [str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()]


def test_finished_shard_is_described_as_it_lies_on_the_disk(tmp_path: pathlib.Path) -> None:
    with ShardWriter(tmp_path, "steps/0.arrayrecord") as writer:
        for record in (b"a", b"bb", b""):
            writer.write(record)
    shard = writer.finished()
    data = (tmp_path / shard.file).read_bytes()
    assert (shard.file, shard.records, shard.num_bytes) == ("steps/0.arrayrecord", 3, len(data))
    assert shard.digest == xxhash.xxh3_128(b"abb").hexdigest()
    reader = array_record_module.ArrayRecordReader(str(tmp_path / shard.file))
    assert reader.read_all() == [b"a", b"bb", b""]
    reader.close()
    assert files(tmp_path) == ["steps/0.arrayrecord"]


def test_exception_in_the_block_leaves_no_file(tmp_path: pathlib.Path) -> None:
    writer = ShardWriter(tmp_path, "steps/0")

    def write() -> None:
        with writer:
            writer.write(b"a")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write()
    assert files(tmp_path) == []
    with pytest.raises(RuntimeError, match="steps/0 is not finished"):
        writer.finished()


def test_shard_is_not_in_its_place_before_the_block_ends(tmp_path: pathlib.Path) -> None:
    with ShardWriter(tmp_path, "steps/0") as writer:
        writer.write(b"a")
        assert not (tmp_path / "steps/0").exists()
    assert (tmp_path / "steps/0").exists()


def test_exception_leaves_the_shard_of_before(tmp_path: pathlib.Path) -> None:
    with ShardWriter(tmp_path, "0") as writer:
        writer.write(b"a")
    before = (tmp_path / "0").read_bytes()
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, "0"):
        raise ZeroDivisionError
    assert (tmp_path / "0").read_bytes() == before


def test_same_records_give_the_same_bytes(tmp_path: pathlib.Path) -> None:
    digests = []
    for name in ("0", "1"):
        with ShardWriter(tmp_path, name) as writer:
            writer.write(b"a" * 1000)
        digests.append(writer.finished().digest)
    assert digests[0] == digests[1]
