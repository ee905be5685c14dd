import contextlib
import gc
import logging
import pathlib
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError
from pipeline.loading.reading import sample_threads
from pipeline.loading.reading.sample_threads import SampleThreads

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch, mini_dataset: pathlib.Path) -> Callable:
    """Makes a function that reads a record of a store that answers when the test ends."""
    answer = threading.Event()
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    monkeypatch.setattr(ColumnReader, "_reader", lambda *_: answer.wait())
    monkeypatch.setattr(sample_threads, "_CHECK_S", 0.01)
    monkeypatch.setattr(sample_threads, "_END_S", 0.01)

    def make(num_threads: int) -> tuple[SampleThreads, Callable[[int], object]]:
        return SampleThreads(num_threads, [reader]), lambda sample: reader.read(300 + sample)

    try:
        yield make
    finally:
        answer.set()


@pytest.mark.parametrize("num_threads", [0, 1, 3, 16])
def test_every_sample_is_read_once(num_threads: int) -> None:
    threads = SampleThreads(num_threads, [])
    for num_samples in (1, 2, 16, 17):
        read = []
        threads(read.append, num_samples)
        assert sorted(read) == [*range(num_samples)]
    threads.close()


def test_as_many_samples_are_read_at_once_as_there_are_threads_even_of_several_batches() -> None:
    threads = SampleThreads(6, [])
    together = threading.Barrier(6)
    calls = [
        threading.Thread(target=threads, args=(lambda _: together.wait(20), 2)) for _ in range(3)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join(20)
    assert not together.broken
    threads.close()


def test_the_error_of_the_first_sample_is_raised_though_a_later_one_is_faster() -> None:
    late = threading.Event()

    def read(sample: int) -> None:
        if sample == 1:
            late.wait(20)
        if sample in {1, 2}:
            late.set()
            raise ValueError(f"sample {sample}")

    threads = SampleThreads(4, [])
    with pytest.raises(ValueError, match="sample 1"):
        threads(read, 4)
    threads.close()


def test_nothing_refers_to_a_batch_that_is_made() -> None:
    threads = SampleThreads(4, [])
    batch = np.zeros(16)
    kept = weakref.ref(batch)
    threads(lambda n, rows=batch: rows.fill(n), 16)
    del batch
    # The threads that were late to take part find the batch finished.
    threads(lambda _: time.sleep(0.01), 4)
    gc.collect()
    assert kept() is None
    threads.close()


def test_a_read_that_hangs_is_logged_once_and_then_ends_the_batches(
    hung: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sample_threads, "_WARN_CHECKS", 3)
    monkeypatch.setattr(sample_threads, "_FAIL_CHECKS", 9)
    threads, read = hung(1)
    message = r"steps/00001-of-00002.arrayrecord, record \d+: expected a read within 0 s; found non"
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=message):
        threads(read, 2)
    (logged,) = caplog.messages
    assert "a read has taken more than 0 s; batches wait for the store" in logged
    threads.close()


def running() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("read-samples")]


def test_closing_waits_for_the_reads_under_way_and_begins_no_others() -> None:
    threads, began, ended = SampleThreads(3, []), threading.Barrier(4), []

    def read(sample: int) -> None:
        began.wait(20)
        time.sleep(0.1)
        ended.append(sample)

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            threads(read, 9)

    calling = threading.Thread(target=call)
    calling.start()
    began.wait(20)
    threads.close()
    assert sorted(ended) == [0, 1, 2]
    assert running() == []
    calling.join(20)


def test_threads_that_nobody_closes_end_with_what_they_read_for() -> None:
    threads = SampleThreads(3, [])
    threads(lambda _: None, 9)
    assert len(running()) == 3
    del threads
    assert running() == []


def test_closing_ends_a_call_whose_reads_hang(hung: Callable) -> None:
    threads, read = hung(2)
    caught = []

    def call() -> None:
        with pytest.raises(RuntimeError, match="was closed while this batch was made") as error:
            threads(read, 4)
        caught.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    time.sleep(0.05)
    threads.close()
    calling.join(20)
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="was closed"):
        threads(read, 4)


_HANGS = """
import os, signal, sys, threading
from octograin import open_loader
from pipeline.data.column_reader import ColumnReader
from pipeline.loading.reading import sample_threads
sample_threads._END_S = 0.1
def hang(*_):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
ColumnReader._reader = hang
with open_loader(sys.argv[1], 4) as loader:
    next(iter(loader))
"""


def test_ctrl_c_ends_a_program_whose_reads_hang(mini_dataset: pathlib.Path) -> None:
    command = [sys.executable, "-c", _HANGS, str(mini_dataset)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
