"""Running a task for every shard, here or in spawned processes."""

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pipeline.errors import UserError
from pipeline.memory import keep_freed_memory
from pipeline.worker_lifetime import Portable, follow_parent

Report = Callable[[int], None]
"""Called with the bytes of every source episode after it was written."""
Task = Callable[[int, Report], None]
"""What is done for the shard of a number."""
OnProgress = Callable[[int, int], None]
"""Called with the episodes, and bytes of them, written since the last call."""

# Seconds between updates of the progress.
_POLL_S = 0.2


def run(task: Task, numbers: Sequence[int], num_workers: int, on_progress: OnProgress) -> None:
    """Runs a task for every number, in this process or in spawned ones.

    Args:
      task: Must be picklable where there is more than one worker.
      numbers: What it is called with.
      num_workers: Processes; 1 is this one.
      on_progress: Called now and then, in this process.

    Raises:
      UserError: The first one of a task, or where a worker was killed; the others are stopped.
    """
    # In this process for one worker, so a debugger works.
    if num_workers == 1:
        for number in numbers:
            task(number, lambda num_bytes: on_progress(1, num_bytes))
        return
    # jax and the readers' threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray("q", 2 * num_workers)  # a pair a worker: no lock to die with
    slots = context.SimpleQueue()
    # Each worker takes a slot, its own pair of counters.
    for slot in range(num_workers):
        slots.put(slot)
    with _children_terminated_on_error():
        executor = concurrent.futures.ProcessPoolExecutor(
            # Portable: a spawned process first finds this project's packages, not a user's folder.
            num_workers,
            context,
            initializer=Portable(_start_worker),
            initargs=(task, counts, slots),
        )
        with executor:
            try:
                _await([executor.submit(_work, n) for n in numbers], counts, on_progress)
            except BaseException:
                # Without waiting: a shard may take an hour, and a rerun resumes from the finished
                # ones.
                executor.shutdown(wait=False, cancel_futures=True)
                raise


def _await(
    futures: Sequence[concurrent.futures.Future[None]], counts: Any, on_progress: OnProgress
) -> None:
    """Returns when all are done, telling the progress meanwhile; raises what one of them raises."""
    pending = set(futures)
    reported = [0, 0]
    while pending:
        done, pending = concurrent.futures.wait(
            pending, _POLL_S, concurrent.futures.FIRST_COMPLETED
        )
        # Even places count episodes, odd ones bytes; a worker writes its own pair, without a lock.
        now = [sum(counts[0::2]), sum(counts[1::2])]
        on_progress(now[0] - reported[0], now[1] - reported[1])
        reported = now
        try:
            for future in done:
                # Raises what the worker raised, in this process.
                future.result()
        except BrokenProcessPool as error:
            # A killed worker leaves no exception of its own.
            raise UserError(
                where="a worker process",
                expected="to live until its shard is done",
                found="it was killed, perhaps for want of memory",
                remedy="Run the same command again with fewer --workers: it resumes from here.",
            ) from error


@contextlib.contextmanager
def _children_terminated_on_error() -> Iterator[None]:
    """Stops the processes that were started inside the block where it ends by an error."""
    # Processes of the caller are left alone.
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        started = set(multiprocessing.active_children()) - others
        for process in started:
            # `executor.shutdown` does not stop a task that is running.
            process.terminate()
        for process in started:
            process.join()
        raise


# --- in a worker

_state: dict[str, Any] = {}


def _start_worker(task: Task, counts: Any, slots: Any) -> None:
    """Prepares a spawned process."""
    # A worker must not outlive a killed job and write into its directory.
    follow_parent()
    keep_freed_memory()
    _state.update(task=task, counts=counts, slot=slots.get())


def _work(number: int) -> None:
    _state["task"](number, _report)


def _report(num_bytes: int) -> None:
    counts, slot = _state["counts"], _state["slot"]
    counts[2 * slot] += 1
    counts[2 * slot + 1] += num_bytes
