"""What every spawned process does first."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

from pipeline.errors import EXIT_INTERRUPTED


def follow_parent() -> None:
    """Leaves Ctrl-C to the parent of this spawned process, and ends this one when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(EXIT_INTERRUPTED)
