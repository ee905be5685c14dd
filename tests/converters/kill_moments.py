"""What happens to a job at a chosen moment; for processes of their own."""

import os
import signal
import sys
from typing import Any

from converters.job.column_job import ColumnJob


def kill_after_first_shard() -> None:
    """Makes this process kill itself once the first shard of a column is written."""
    write = ColumnJob.write

    def write_and_die(self: ColumnJob, number: int, *others: Any, **named: Any) -> Any:
        write(self, number, *others, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    ColumnJob.write = write_and_die


def kill_before_change() -> None:
    """Makes this process kill itself before one of its changes of the disk; KILL_BEFORE has which.

    A change is a file or folder that gets another name or goes, counted from 0.
    """
    left = int(os.environ["KILL_BEFORE"])

    def count_down(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.rename", "os.remove") and os.path.lexists(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count_down)
