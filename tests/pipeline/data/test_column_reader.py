import os
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import open_dataset


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
