"""Handles the signals that ask a run to save and stop."""

import logging
import os
import signal
import socket
import sys
import threading
import time
import types

_log = logging.getLogger("train.run")
_ASK = (signal.SIGTERM, signal.SIGUSR1)
_PATIENCE_S = 5.0
"""A scheduler may send one signal several times; within this many seconds they count as one."""


class StopRequests:
    """Records SIGTERM and SIGUSR1 instead of dying from them; a context manager.

    After `note_ctrl_c` a first Ctrl-C is recorded too; a second one interrupts at once. Any of
    these
    signals that arrives five seconds or more after the first ends the process, even while it waits
    for another process that does not respond.
    """

    def __init__(self) -> None:
        self.first_signal: signal.Signals | None = None
        """The first signal that arrived."""
        self._asks: list[signal.Signals] = list(_ASK)
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._arrivals, self._wakeup = socket.socketpair()
        # Non-blocking, as `set_wakeup_fd` demands.
        self._wakeup.settimeout(0)
        self._wakeup_before = -1

    def __enter__(self) -> "StopRequests":
        """Starts recording signals."""
        for number in _ASK:
            self._note(number)
        # A handler runs only between Python instructions; a wait for the devices would block it.
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        # A daemon: it ends with the process.
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the previous signal handlers."""
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup.close()
        for number in (*_ASK, signal.SIGINT):
            self._restore(number)

    def note_ctrl_c(self) -> None:
        """Records the first Ctrl-C from now on."""
        self._note(signal.SIGINT)
        self._asks.append(signal.SIGINT)

    def _note(self, number: signal.Signals) -> None:
        self._before[number] = signal.signal(number, self._receive)

    def _restore(self, number: signal.Signals) -> None:
        if number in self._before:
            signal.signal(number, self._before.pop(number))

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        # The first one is the reason that is reported.
        self.first_signal = self.first_signal or signal.Signals(number)
        if number == signal.SIGINT:
            # A second Ctrl-C interrupts at once.
            self._restore(signal.SIGINT)

    def _watch(self) -> None:
        """Logs the first signal, and ends the process at one that arrives much later."""
        first_s = None
        with self._arrivals:
            # Ends when the other end is closed.
            while arrived := self._arrivals.recv(1):
                number, now_s = arrived[0], time.monotonic()
                # The wakeup descriptor gets every signal that has a Python handler.
                if number not in self._asks:
                    continue
                name = signal.Signals(number).name
                if first_s is None:
                    first_s = now_s
                    _log.warning("%s: stopping; a second one after 5 s ends the run unsaved", name)
                elif now_s - first_s >= _PATIENCE_S:
                    sys.stderr.write(
                        f"ended by a second {name}; --resume continues from the last checkpoint\n"
                    )
                    sys.stderr.flush()
                    # `os._exit`: the main thread may be waiting for a process that does not answer.
                    os._exit(128 + number)
