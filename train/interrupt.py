"""Signals that ask a run to stop where it can go on from."""

import signal
import types

_ASK = (signal.SIGTERM, signal.SIGUSR1)


class StopRequests:
    """Notes SIGTERM and SIGUSR1 instead of dying of them; a context manager.

    After `note_ctrl_c` a first Ctrl-C is noted as well; a second one interrupts at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that came."""
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequests":
        """Begins to note."""
        for number in _ASK:
            self._note(number)
        return self

    def __exit__(self, *error: object) -> None:
        """Signals mean again what they meant before."""
        for number in (*_ASK, signal.SIGINT):
            self._restore(number)

    def note_ctrl_c(self) -> None:
        """From here on a first Ctrl-C is noted."""
        self._note(signal.SIGINT)

    def _note(self, number: signal.Signals) -> None:
        self._before[number] = signal.signal(number, self._receive)

    def _restore(self, number: signal.Signals) -> None:
        if number in self._before:
            signal.signal(number, self._before.pop(number))

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.received = self.received or signal.Signals(number)
        if number == signal.SIGINT:
            self._restore(signal.SIGINT)
