"""What Spark prints and raises, in one line for a user."""

import collections
import contextlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator

from pipeline.errors import UserError, install_extra

PYTHON = "PYSPARK_PYTHON"
"""Environment variable that names the interpreter of the executors."""
_JAVA = "\n: "
"""What stands in an error of PySpark before the driver's own error."""
_TRACEBACK = "Traceback (most recent call last):"
_NUM_LINES = 1000
_MESSAGE = re.compile(r"\S+ \S+ (WARN|ERROR|FATAL) (.*)")
"""A line of Spark's log: date, time, level, and the class with its message."""
_REPEATED = re.compile(
    rf"Executor: |TaskSetManager: .*({re.escape(_TRACEBACK)}|TaskKilled|aborting)"
)
"""Messages about tasks that raise an exception, which is reported once: as the error of the job."""
_FATAL = re.compile(r'(?:Error|Exception in thread "main" [\w.$]+): (.+)')
_log = logging.getLogger(__name__)


class DriverLog:
    """What a driver prints. Warnings and errors are logged while `is_shown`."""

    def __init__(self) -> None:
        self.is_shown = False
        """Off while it starts: it always warns of the host's name, and of Hadoop."""
        self._lines: collections.deque[str] = collections.deque(maxlen=_NUM_LINES)
        self._reader: threading.Thread | None = None

    @contextlib.contextmanager
    def pipe(self) -> Iterator[int]:
        """Yields a file descriptor for a process that is started in the block to print to."""
        read, write = os.pipe()
        # A daemon: a process that got the pipe from the driver may outlive it.
        self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reader.start()
        try:
            yield write
        finally:
            os.close(write)

    def _read(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                message = _MESSAGE.match(line)
                if self.is_shown and message and not _REPEATED.match(message[2]):
                    _log.warning("Spark: %s", message[2])

    def cause(self) -> str:
        """Why the driver ended, or the last error that it logged; empty if it printed neither."""
        if self._reader is not None:
            # What it printed last may still be in the pipe.
            self._reader.join(1)
        lines = list(self._lines)
        fatal = [match[1] for match in map(_FATAL.match, lines) if match]
        logged = [match[2] for match in map(_MESSAGE.match, lines) if match and match[1] != "WARN"]
        return next(iter([*fatal, *reversed(logged)]), "")

    @property
    def last_line(self) -> str:
        """The last line outside a Java stack; empty if nothing was printed."""
        return next((line for line in reversed(self._lines) if line.strip() == line != ""), "")


def reason(error: Exception) -> str:
    """One line for an error of PySpark: what the driver reports, without its stack.

    Where Python code of a task failed, that is the exception that it raised.
    """
    text = str(error).partition(_JAVA)[2] or str(error)
    text = text.partition("\n\tat ")[0].partition("\nDriver stacktrace")[0]
    head, *tracebacks = text.split(_TRACEBACK)
    if not tracebacks:
        return next(iter(head.splitlines()), type(error).__name__)
    # The lines of the code are indented, and the exception is not.
    raised = [line for line in tracebacks[-1].splitlines() if line.strip() == line != ""]
    return f"a task that raised {raised[0] if raised else 'an exception'}"


def not_started(error: Exception, log: DriverLog) -> UserError:
    """The error of a driver that did not start."""
    found = reason(error)
    if not _is_of_java(error):
        # It says only that the driver ended before it could be called.
        found = log.cause() or log.last_line or found
    remedy = "Correct the flags after -- or the settings of Spark."
    # Asked only now: SPARK_HOME/conf/spark-env.sh may name one that this process does not see.
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=os.path.join(home, "bin") if home else None) is None:
        found = f"no Java at JAVA_HOME={home}" if home else "no Java"
        remedy = "Install Java 17 or later, and set JAVA_HOME where it is not on the PATH."
    return spark_error("Spark's driver to start", found.rstrip("."), remedy)


def failed(error: Exception, log: DriverLog) -> UserError:
    """The error of a job that did not run to its end."""
    found = reason(error)
    if not _is_of_java(error):
        found = log.cause() or f"that the driver has ended ({found})"
    elif "stopped SparkContext" in found or "was shut down" in found:
        # Why is in the log alone.
        found = log.cause() or found
    remedy = "See Spark's own log, and run the same command again: it resumes from here."
    if "ModuleNotFoundError" in found or "PYTHON_VERSION_MISMATCH" in found:
        remedy = (
            f"Executors run the interpreter that {PYTHON} names, which needs this package. "
            f"{install_extra('spark')} there, and run the same command again."
        )
    return spark_error("its job to run to its end", found.rstrip("."), remedy)


def spark_error(expected: str, found: str, remedy: str) -> UserError:
    """An error of the flag `--runner spark`."""
    return UserError(where="--runner spark", expected=expected, found=found, remedy=remedy)


def _is_of_java(error: Exception) -> bool:
    return _JAVA in str(error)
