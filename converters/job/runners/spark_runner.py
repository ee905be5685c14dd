"""Converting on Apache Spark: its executors convert the shards, one task per shard."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from converters.job.runners.spark_messages import (
    PYTHON,
    DriverLog,
    failed,
    not_started,
    spark_error,
)
from converters.job.shard_conversion import ShardJob
from converters.job.workers import OnProgress
from pipeline.bundled import VERSION
from pipeline.errors import UserError, install_extra
from pipeline.memory import keep_freed_memory
from pipeline.worker_lifetime import Portable

_GATEWAY = "PYSPARK_GATEWAY_PORT"
"""Environment variable of a program that `spark-submit` started: its driver runs already."""
_FLAGS = "PYSPARK_SUBMIT_ARGS"
_SHELL = "pyspark-shell"
"""What PySpark submits in place of a program: a driver that this process controls."""
_QUESTIONS = {"--help", "-h", "--version", "--status", "--kill"}
"""Flags of `spark-submit` that answer and start no driver; PySpark would wait for it forever."""
_POLL_S = 0.2
"""Seconds between updates of the progress."""
_STOP_S = 60
"""Seconds that a driver has to end by itself."""


@dataclasses.dataclass(frozen=True)
class SparkRunner:
    """Converts the shards as one Spark job, and waits for its end.

    The executors need this package, and the source and destination under the same paths; they
    write what the local runner writes. Attempts of one task may overlap: each writes the same
    bytes, under a temporary name of its own that it renames at the end.
    """

    flags: tuple[str, ...] = ()
    """Flags of `spark-submit`, such as `--master=yarn`; none if it started this program."""

    def __post_init__(self) -> None:
        """Refuses a missing PySpark and flags that start no driver, before anything is written."""
        _check_installed()
        _check(self.flags)

    def __call__(self, job: ShardJob, numbers: Sequence[int], on_progress: OnProgress) -> None:
        """Converts the shards; of those that fail, the first is raised when the others are done."""
        if not numbers:
            return
        # The pool is left last: its thread waits for the job, which ends with Spark if not before.
        with (
            concurrent.futures.ThreadPoolExecutor(1) as pool,
            _spark(f"octograin convert {job.source.name}", self.flags) as context,
        ):
            errors = _run(context, pool, job, numbers, on_progress)
        for number, error in zip(numbers, errors, strict=True):
            if error is not None:
                raise error
            if not job.is_done(number):
                raise UserError(
                    where=job.source.shards[number].where,
                    expected=f"its shard in {job.destination}, as its task has ended",
                    found="none",
                    remedy="Name a destination that all machines reach under the same path.",
                )


def _run(
    context: Any,
    pool: concurrent.futures.Executor,
    job: ShardJob,
    numbers: Sequence[int],
    on_progress: OnProgress,
) -> list[UserError | None]:
    """Runs one task per shard; for each the user's mistake that it found."""
    # Spark adds what a task counted when it succeeds, and once, however often it was tried.
    counts = context.accumulator(0), context.accumulator(0)
    task = functools.partial(_convert, job=job, version=VERSION, counts=counts)
    # As many slices as shards, so that a lost executor repeats only those that it was writing.
    tasks = context.parallelize(list(numbers), len(numbers)).map(Portable(task))
    errors = pool.submit(tasks.collect)
    reported = (0, 0)
    is_done = False
    while not is_done:
        # Asked before the counts are read, so that the last ones are reported as well.
        is_done = bool(concurrent.futures.wait([errors], _POLL_S).done)
        now = (counts[0].value, counts[1].value)
        on_progress(now[0] - reported[0], now[1] - reported[1])
        reported = now
    return errors.result()


@contextlib.contextmanager
def _spark(name: str, flags: Sequence[str]) -> Iterator[Any]:
    """Yields a SparkContext, and stops it at the end of the block.

    It is that of `spark-submit` where this program was started by it. Else a driver is started,
    whose warnings are logged here.

    Raises:
      UserError: Spark does not start, or its job fails in the block.
    """
    from py4j.protocol import Py4JError  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    # A lost connection is reported once, as the error of the job.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    log = DriverLog()
    with contextlib.ExitStack() as stack:
        try:
            with _submitted(name, flags):
                gateway = stack.enter_context(_driver(log)) if _GATEWAY not in os.environ else None
                context = stack.enter_context(_context(gateway))
        except (Py4JError, OSError, RuntimeError, ValueError) as error:
            raise not_started(error, log) from error
        log.is_shown = True
        try:
            yield context
        except (Py4JError, ConnectionError, EOFError) as error:
            raise failed(error, log) from error
        finally:
            # Executors that are lost from here on are those that it stops.
            log.is_shown = False


def _check_installed() -> None:
    try:
        import pyspark  # noqa: F401, PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise spark_error("PySpark", str(error), f"{install_extra('spark')}.") from error


def _check(flags: Sequence[str]) -> None:
    if flags and _GATEWAY in os.environ:
        raise spark_error(
            "no flags after --, as spark-submit started this program",
            flags[0],
            "Give Spark's flags to spark-submit.",
        )
    questions = [flag for flag in flags if flag in _QUESTIONS]
    if questions:
        raise spark_error(
            "flags of spark-submit that say where and how a program runs",
            questions[0],
            f"Run `spark-submit {questions[0]}`.",
        )


@contextlib.contextmanager
def _submitted(name: str, flags: Sequence[str]) -> Iterator[None]:
    """Sets the environment variables with which PySpark starts a driver."""
    before = dict(os.environ)
    known = [flag for flag in shlex.split(before.get(_FLAGS, "")) if flag != _SHELL]
    default = ["--name", name, "--conf", "spark.ui.showConsoleProgress=false"]
    # The last one of a flag counts: the command line wins over the variable, and both over these.
    os.environ[_FLAGS] = shlex.join([*default, *known, *flags, _SHELL])
    # Else executors would run whatever `python3` is.
    os.environ.setdefault(PYTHON, sys.executable)
    try:
        yield
    finally:
        for key in (_FLAGS, PYTHON):
            del os.environ[key]
            os.environ.update({key: before[key]} if key in before else {})


@contextlib.contextmanager
def _driver(log: DriverLog) -> Iterator[Any]:
    """Starts a driver's JVM, and ends it after the block; yields the connection to it."""
    from pyspark import (  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        SparkContext,
        java_gateway,
    )

    with log.pipe() as descriptor:
        gateway = java_gateway.launch_gateway(
            popen_kwargs={"stdout": descriptor, "stderr": descriptor}
        )
    try:
        yield gateway
    finally:
        gateway.shutdown()
        # The JVM waits for the end of its input.
        gateway.proc.stdin.close()
        try:
            gateway.proc.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            gateway.proc.kill()
            gateway.proc.wait()
        # PySpark keeps one for the whole process; another conversion starts its own.
        SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001


@contextlib.contextmanager
def _context(gateway: Any) -> Iterator[Any]:
    from pyspark import SparkContext  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    handler = signal.getsignal(signal.SIGINT)
    context = SparkContext(gateway=gateway)
    if threading.current_thread() is threading.main_thread():
        # PySpark's own handler calls the driver, which Ctrl-C may have ended.
        signal.signal(signal.SIGINT, handler)
    try:
        yield context
    finally:
        # Also ends a job that still runs.
        _stop(context)


def _stop(context: Any) -> None:
    from py4j.protocol import Py4JError  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        # That the driver has ended is the error of the job.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            context.stop()
        except (Py4JError, ConnectionError, EOFError):
            # Now it knows that the driver has ended, and stops what is in this process.
            context.stop()


# --- in an executor


def _convert(
    number: int, *, job: ShardJob, version: str, counts: tuple[Any, Any]
) -> UserError | None:
    """Converts a shard; returns a user's mistake, as Spark would repeat a task that raises it."""
    # Another version may write other bytes.
    if version != VERSION:
        return UserError(
            where=f"the executor on {socket.gethostname()}",
            expected=f"octograin {version}, as the driver has",
            found=VERSION,
            remedy="Install the same version on all machines.",
        )
    num_episodes, num_bytes = counts

    def report(size: int) -> None:
        num_episodes.add(1)
        num_bytes.add(size)

    keep_freed_memory()
    try:
        job.convert(number, report)
    except UserError as error:
        return error
    return None
