import errno
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from contextlib import AbstractContextManager

import fsspec
import pytest
import xxhash
from array_record.python import array_record_module
from etils import epath

from pipeline.data.dataset import open_dataset
from pipeline.data.dataset_writer import ShardWriter, write_manifest
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError

REPOSITORY = pathlib.Path(__file__).parents[3]


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


# --- what the system refuses

REFUSED = "expected to write the file; found .*{}.* Free space .* run the same command again"


def test_a_record_after_the_end_is_refused(tmp_path: pathlib.Path) -> None:
    with ShardWriter(tmp_path, "0") as writer:
        writer.write(b"a")
    before = (tmp_path / "0").read_bytes()
    with pytest.raises(DataError, match="0: " + REFUSED.format("Object closed")):
        writer.write(b"b")
    assert (writer.count, writer.finished().records) == (1, 1)
    assert (tmp_path / "0").read_bytes() == before


def write_one(directory: epath.PathLike, file: str) -> None:
    with ShardWriter(directory, file) as writer:
        writer.write(b"a")


@pytest.mark.parametrize("file", ["taken/0", "taken/deeper/0"])
def test_a_folder_that_is_a_file_is_refused(tmp_path: pathlib.Path, file: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(
        DataError, match=f"{file}: " + REFUSED.format("File exists|Not a directory")
    ):
        write_one(tmp_path, file)
    assert files(tmp_path) == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_file_that_is_a_folder_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "0" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match="0: " + REFUSED.format("Is a directory")):
        write_one(tmp_path, "0")
    assert [p.name for p in tmp_path.iterdir()] == ["0"]


def test_a_folder_without_permission_is_refused(
    tmp_path: pathlib.Path, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for directory in (tmp_path, locked):
        with as_nobody(), pytest.raises(DataError, match=REFUSED.format("Permission denied")):
            write_one(directory, "locked/0" if directory == tmp_path else "0")
    assert files(tmp_path) == []


FULL = """
import resource, signal, sys
from pipeline.errors import DataError
from pipeline.data.dataset_writer import ShardWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with ShardWriter(sys.argv[1], "steps/0") as writer:
        for _ in range(int(sys.argv[2])):
            writer.write(bytes(50_000))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("num_records", [2, 3, 100])
def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: pathlib.Path, num_records: int
) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "0").write_bytes(b"of before")
    command = [sys.executable, "-c", FULL, str(tmp_path), str(num_records)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    (line,) = done.stdout.splitlines()
    assert re.search("steps/0: " + REFUSED.format("File too large"), line)
    assert files(tmp_path) == ["steps/0"]
    assert (tmp_path / "steps" / "0").read_bytes() == b"of before"


def test_a_file_that_lost_records_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful:
        def __init__(self, path: str, options: str) -> None:
            self._real = array_record_module.ArrayRecordWriter(path, options)
            self._real.write(b"the first")

        def write(self, record: bytes) -> None:
            pass

        def close(self) -> None:
            self._real.close()

    forgetful = types.SimpleNamespace(
        ArrayRecordWriter=Forgetful, ArrayRecordReader=array_record_module.ArrayRecordReader
    )
    monkeypatch.setattr("pipeline.data.dataset_writer.array_record_module", forgetful)

    def write_two() -> None:
        with ShardWriter(tmp_path, "0") as writer:
            writer.write(b"the first")
            writer.write(b"the second")

    with pytest.raises(DataError, match=REFUSED.format("1 of 2 records after writing")):
        write_two()
    assert files(tmp_path) == []


# --- an object store


def names(store: epath.Path) -> list[str]:
    """Everything in the store."""
    found = fsspec.filesystem("s3").find(str(store))
    return sorted(path.removeprefix("bucket/") for path in found)


def test_a_shard_is_uploaded_whole(
    tmp_path: pathlib.Path, object_store: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    shards = []
    for directory in (epath.Path(tmp_path), object_store / "set"):
        with ShardWriter(directory, "steps/0") as writer:
            writer.write(b"a" * 3_000_000)
            writer.write(b"b")
            assert not (directory / "steps" / "0").exists()
        shards.append(writer.finished())
    assert shards[0] == shards[1]
    uploaded = (object_store / "set" / "steps" / "0").read_bytes()
    assert uploaded == (tmp_path / "steps" / "0").read_bytes()
    assert names(object_store) == ["set/steps/0"]
    assert files(tmp_path) == ["steps/0"]


def test_an_exception_uploads_nothing_and_keeps_no_scratch(
    tmp_path: pathlib.Path, object_store: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_one(object_store, "0")
    before = (object_store / "0").read_bytes()

    def fail(file: str) -> None:
        with ShardWriter(object_store, file) as writer:
            writer.write(b"b")
            raise ZeroDivisionError

    for file in ("0", "1"):
        with pytest.raises(ZeroDivisionError):
            fail(file)
    assert names(object_store) == ["0"]
    assert (object_store / "0").read_bytes() == before
    assert files(tmp_path) == []


def test_an_upload_that_is_refused_is_reported(
    tmp_path: pathlib.Path, object_store: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refuse(source: object, target: object, length: int) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(shutil, "copyfileobj", refuse)
    message = "s3://bucket/set/0: " + REFUSED.format("Access Denied")
    with pytest.raises(DataError, match=message):
        write_one(object_store / "set", "0")
    assert files(tmp_path) == []


def test_a_manifest_is_written_to_an_object_store(
    mini_dataset: pathlib.Path, object_store: epath.Path
) -> None:
    dataset = open_dataset(str(mini_dataset))
    write_manifest(object_store, dataset.manifest, dataset.statistics)
    assert names(object_store) == ["dataset.json", "statistics.json"]
    assert load_manifest(object_store) == dataset.manifest
    for name in names(object_store):
        assert (object_store / name).read_text() == (mini_dataset / name).read_text()
