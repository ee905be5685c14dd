import json
import os
import pathlib
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, RecordError


def test_two_shards_are_opened_at_the_same_time(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    together, opened = threading.Barrier(2), ColumnReader._open

    def open_together(self: ColumnReader, shard: Any) -> Any:
        together.wait(20)
        return opened(self, shard)

    monkeypatch.setattr(ColumnReader, "_open", open_together)
    with ThreadPoolExecutor(2) as threads:
        first, last = threads.map(reader.read, (0, len(reader) - 1))
    assert first.keys() == last.keys()
    assert reader.longest_read() is None


def test_a_shard_is_opened_once(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    shards, opened = [], ColumnReader._open

    def noted(self: ColumnReader, shard: Any) -> Any:
        shards.append(shard)
        return opened(self, shard)

    monkeypatch.setattr(ColumnReader, "_open", noted)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(reader.read, range(16)))
    assert len(shards) == 1


@pytest.fixture
def few_files() -> Iterator[int]:
    """Allows the process two more open files, and returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, hard))
    yield free + 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_of_open_files_grows_with_the_shards(
    mini_dataset: pathlib.Path, few_files: int
) -> None:
    # Two shards of each of three columns.
    for reader in open_dataset(str(mini_dataset)).columns.values():
        reader.read(0)
        reader.read(len(reader) - 1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > few_files


def test_too_many_open_files_are_not_taken_for_a_corrupt_shard(
    mini_dataset: pathlib.Path, few_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = open_dataset(str(mini_dataset)).columns.values()
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(DataError, match=r"found Too many open files\. .* `ulimit -n 65536`"):
        # More than the two that are allowed.
        [reader.read(index) for reader in readers for index in (0, len(reader) - 1)]
    assert few_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for reader in readers:
        reader.close()


def test_sizes_of_shards_are_asked_for_at_the_same_time(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, found = threading.Barrier(6), os.stat

    def stat_together(path: Any, *args: Any, **names: Any) -> os.stat_result:
        if str(path).endswith(".arrayrecord"):
            together.wait(20)
        return found(path, *args, **names)

    monkeypatch.setattr(os, "stat", stat_together)
    # Two shards of each of three columns.
    assert open_dataset(str(mini_dataset)).num_episodes == 4


@pytest.mark.parametrize("change", [1, -1])
def test_an_episode_of_another_length_than_the_manifest_says_is_refused(
    copied: pathlib.Path, edit_json: Callable, change: int
) -> None:
    found = json.loads((copied / "dataset.json").read_text())["episode_lengths"][:2]

    def lengthen(manifest: dict[str, Any]) -> None:
        # The number of all steps stays: it is that of the column of images.
        manifest["episode_lengths"][0] += change
        manifest["episode_lengths"][1] -= change

    edit_json(copied / "dataset.json", lengthen)
    message = f"expected an episode of {found[0] + change} steps; found one of {found[0]}"
    with pytest.raises(RecordError, match=message) as raised:
        open_dataset(str(copied)).episode(0, keys=["action"])
    assert raised.value.record == "episodes/00000-of-00002.arrayrecord:0"
