"""Threads that read the samples of the batches ahead, each one sample at a time."""

import itertools
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from pipeline.data.column_reader import ColumnReader
from pipeline.errors import DataError

_log = logging.getLogger(__name__)

_CHECK_S = 10.0
"""Seconds between two checks of the reads of a batch that is not finished."""
_WARN_CHECKS = 6
"""A read that this many checks find unfinished is logged."""
_FAIL_CHECKS = 60
"""A read that this many checks find unfinished ends the batches."""
_END_S = 5.0
"""Seconds that closing waits for the reads that are under way."""

ForEach = Callable[[Callable[[int], None], int], None]
"""Calls a function with 0, 1, ..., n - 1, given n, and returns when all calls have returned."""


def in_turn(read: Callable[[int], None], num_samples: int) -> None:
    """Reads one sample after the other, in the calling thread."""
    for sample in range(num_samples):
        read(sample)


class SampleThreads:
    """Reads the samples of batches in threads that all batches share; a `ForEach`.

    Every read of a batch is known before its first one, so samples are read at the same time: in a
    store that takes 20 ms for a read, 48 threads read 48 samples in the time of one. Samples of a
    batch that was asked for earlier come first.

    The threads are daemons: one that hangs in a read keeps the program from ending for five seconds
    at most.

    Args:
      num_threads: Number of threads; 0: the thread that asks for a batch reads its samples.
      readers: Every column that samples are read from, whose reads are watched.
    """

    def __init__(self, num_threads: int, readers: Sequence[ColumnReader]) -> None:
        self._num_threads = num_threads
        self._readers = tuple(readers)
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._works: set[_Work] = set()
        self._warned: set[tuple[float, str]] = set()
        self._is_closed = False
        started = [_start(number, self._queue) for number in range(num_threads)]
        # Also where nobody calls `close`: when this object is freed, or the program ends.
        self._end = weakref.finalize(self, _end, self._queue, started)

    def __call__(self, read: Callable[[int], None], num_samples: int) -> None:
        """Calls `read` for every sample; safe to call from several threads at once.

        Raises:
          DataError: A read has not finished in ten minutes.
          Exception: What `read` raised for the first sample that failed.
        """
        if not self._num_threads:
            in_turn(read, num_samples)
            return
        work = _Work(read, num_samples)
        self._works.add(work)
        # One entry for each thread that can take part, not for each sample: a tenth of the cost.
        for _ in range(min(self._num_threads, num_samples)):
            self._queue.put(work)
        try:
            self._wait(work)
        finally:
            self._works.discard(work)
        work.check()

    def close(self) -> None:
        """Ends every call and the threads, except those that hang in a read."""
        self._is_closed = True
        for work in list(self._works):
            work.cancel()
        self._end()

    def _wait(self, work: "_Work") -> None:
        # Counts checks, not seconds: a process that was stopped for an hour is no slow store.
        num_checks, longest = 0, None
        while not self._is_closed and not work.is_done.wait(_CHECK_S):
            before, longest = longest, self._longest_read()
            is_same = longest is not None and longest == before
            num_checks = num_checks + 1 if is_same else 0
            if longest is not None and num_checks >= _WARN_CHECKS:
                self._report(longest, num_checks)

    def _longest_read(self) -> tuple[float, str] | None:
        """Start and place of the read that has been under way for the longest time."""
        found = [read for reader in self._readers if (read := reader.longest_read()) is not None]
        return min(found, default=None)

    def _report(self, read: tuple[float, str], num_checks: int) -> None:
        _, place = read
        if num_checks >= _FAIL_CHECKS:
            raise DataError(
                where=place,
                expected=f"a read within {_FAIL_CHECKS * _CHECK_S:.0f} s",
                found="none yet",
                remedy="The store does not answer: check its mount, then resume.",
            )
        # Several batches wait for one read: it is logged once.
        if read not in self._warned:
            self._warned.add(read)
            _log.warning(
                "%s: a read has taken more than %.0f s; batches wait for the store, and end with "
                "an error after %.0f s",
                place,
                _WARN_CHECKS * _CHECK_S,
                _FAIL_CHECKS * _CHECK_S,
            )


class _Work:
    """The samples of one batch, which several threads read."""

    def __init__(self, read: Callable[[int], None], num_samples: int) -> None:
        self.is_done = threading.Event()
        self._read: Callable[[int], None] | None = read
        # `next` of a counter is one operation among threads.
        self._samples = itertools.count()
        self._num_samples = self._num_left = num_samples
        self._errors: dict[int, BaseException] = {}
        self._lock = threading.Lock()
        self._is_cancelled = False

    def take_part(self) -> None:
        """Reads samples that no other thread has begun, until there are none."""
        while (sample := next(self._samples)) < self._num_samples:
            read = self._read
            if read is None:
                return
            try:
                read(sample)
            except BaseException as error:  # noqa: BLE001  (raised again by `check`)
                self._errors[sample] = error
            # Before it is counted: a batch's memory is free once nothing refers to it.
            del read
            self._count()

    def _count(self) -> None:
        with self._lock:
            self._num_left -= 1
            is_last = not self._num_left
        if is_last:
            self._read = None
            self.is_done.set()

    def cancel(self) -> None:
        """Ends the wait for samples that are not read."""
        self._is_cancelled = True
        self._read = None
        self.is_done.set()

    def check(self) -> None:
        """Raises the error of the first sample that failed, whichever thread was faster."""
        errors, self._errors = self._errors, {}
        if errors:
            raise errors[min(errors)]
        if self._num_left:
            raise RuntimeError("the loader was closed while this batch was made")


def _start(number: int, works: "queue.SimpleQueue[_Work | None]") -> threading.Thread:
    name = f"read-samples-{number}"
    thread = threading.Thread(target=_work, args=(works,), name=name, daemon=True)
    thread.start()
    return thread


def _end(works: "queue.SimpleQueue[_Work | None]", threads: Sequence[threading.Thread]) -> None:
    """Ends threads, and waits for the reads that they are in.

    A thread that returns from ArrayRecord while Python is being torn down aborts the process.
    """
    for _ in threads:
        works.put(None)
    last = time.monotonic() + _END_S
    for thread in threads:
        # One of them may have held the last reference.
        if thread is not threading.current_thread():
            thread.join(max(last - time.monotonic(), 0))


def _work(works: "queue.SimpleQueue[_Work | None]") -> None:
    """Takes part in works until there is None."""
    while (work := works.get()) is not None:
        work.take_part()
        # Waiting for the next one would keep this one's batch in memory.
        del work
