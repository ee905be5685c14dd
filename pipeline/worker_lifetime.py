"""What every spawned process does first, and how it finds this package."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

import octograin
from pipeline.errors import EXIT_INTERRUPTED


class Portable:
    """A function for another process, which imports octograin before it looks for the function.

    A folder `pipeline` or a file `train.py` in that process's current directory is then not taken
    for this project's package of that name.

    Args:
      function: Picklable.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Calls the function."""
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        """Bytes within bytes: the outer ones name octograin, the inner ones the function."""
        # `octograin.unpickled` is imported first, and puts this project's packages in front.
        return octograin.unpickled, (pickle.dumps(self._function),)


def follow_parent() -> None:
    """Ignores Ctrl-C in this spawned process, and ends it when its parent process ends."""
    # The parent handles Ctrl-C and ends its workers; both would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A daemon, so that it does not keep the process alive.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # The sentinel is ready when the parent has ended, even by SIGKILL.
        multiprocessing.connection.wait([parent.sentinel])
        # At once: the main thread may be inside a long call into C.
        os._exit(EXIT_INTERRUPTED)
