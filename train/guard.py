"""Guards a training loop: what ends one process ends all of them, with the state saved."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import jax

from pipeline.errors import RecordError, UserError
from train import distributed
from train.train_config import TrainConfig

_log = logging.getLogger("train.run")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_MOST_SIGNALS = 128
"""More than any system has."""
_PATIENCE_S = 5.0
"""A scheduler may send one signal several times; within this many seconds they count as one."""
T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  (no error: the run was asked to)
    """Raised when a run was asked to stop; its state is saved."""

    def __init__(self, by: signal.Signals | None, remedy: str, cause: str) -> None:
        super().__init__()
        self.by = by
        """The signal that was received; None: another process received it."""
        self.cause = cause
        """That signal, and the process if it is another one, such as `SIGINT to process 1`."""
        self.remedy = remedy
        """What the user can do next."""


class Guard:
    """Ends a training loop as a whole; a context manager around the loop and what it opens.

    A loop that does what can fail in one process alone inside `attempt`, and calls `check` before
    each training step, is promised:

    - A `UserError` in a process, or a signal to it, ends the loop in every process, before the same
      training step: none is left waiting for the others.
    - The state is saved first, and the error says at which step and how to continue.
    - A first SIGTERM or SIGUSR1, which schedulers send, interrupts neither a training step nor a
      save; after `record_ctrl_c`, neither does a first Ctrl-C.
    - A second Ctrl-C interrupts at once. So does any of these signals 5 s or more after the first,
      even while the process waits for a device or for another process that does not answer.

    For example:

        with Guard(config) as guard:
            guard.record_ctrl_c()
            for step in range(config.num_steps):
                batch = guard.attempt(batches.__next__)
                guard.check(step, save)
                state, metrics = train_step(state, batch)
            guard.check(config.num_steps, save)

    Args:
      config: The config of the run.

    Raises:
      UserError: It is entered outside the main thread, which alone receives signals.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._failure: UserError | None = None
        self._first_signal: signal.Signals | None = None
        self._recorded: list[signal.Signals] = []
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._arrivals: socket.socket
        self._wakeup: socket.socket
        self._watcher: threading.Thread
        self._wakeup_before = -1

    def __enter__(self) -> "Guard":
        """Starts recording signals instead of dying from them."""
        if threading.current_thread() is not threading.main_thread():
            raise UserError(
                where="training",
                expected="the main thread of a process, which alone receives signals",
                found=f"the thread {threading.current_thread().name}",
                remedy="Train in the main thread, or start a process for it.",
            )
        self._arrivals, self._wakeup = socket.socketpair()
        # Non-blocking, as `set_wakeup_fd` demands.
        self._wakeup.settimeout(0)
        for number in _STOP_SIGNALS:
            self._record(number)
        # A handler runs only between Python instructions; a wait for the devices would block it.
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        # A daemon: it ends with the process.
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Restores the previous signal handlers; logs a stop, now that the state is on disk."""
        self._end_all(error)
        self.release()
        if isinstance(error, Stopped):
            _log.warning("stopped by %s; the state is saved: %s", error.cause, error.remedy)

    @contextlib.contextmanager
    def unexpected(self) -> Iterator[None]:
        """Ends all processes at an error in the block that no process agreed on.

        The guard itself does so when it is left. Use this further inside, where what is left before
        waits for the other processes, such as for their part of a checkpoint.
        """
        try:
            yield
        except BaseException as error:
            self._end_all(error)
            raise

    def _end_all(self, error: BaseException | None) -> None:
        """Ends all processes, unless the error is one that all of them have."""
        if error is not None and not isinstance(error, (UserError, Stopped, SystemExit)):
            distributed.end_all(error)

    def release(self) -> None:
        """Restores the previous signal handlers; to be called once a signal can lose nothing."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            self._wakeup.close()
            self._watcher.join()
        for number in list(self._before):
            self._restore(number)

    def record_ctrl_c(self) -> None:
        """Records the first Ctrl-C from now on.

        Call it once the loop begins: until then an interrupt loses nothing. Later an interpreter
        that ends under programs that run on the devices may crash.
        """
        self._record(signal.SIGINT)

    def attempt(self, work: Callable[..., T], *arguments: object) -> T:
        """Returns what `work(*arguments)` returns; nothing usable if it raises a `UserError`.

        `check` then raises that error, of several the first, which is the cause of the others: use
        the result after it alone.
        """
        try:
            with exclusion_named(self._config):
                return work(*arguments)
        except UserError as error:
            self._failure = self._failure or error
            return cast(T, None)

    def check(self, step: int, save: Callable[[], None]) -> None:
        """Returns if no process failed or was asked to stop; every process must call this.

        Args:
          step: Training steps taken.
          save: Saves the state after that training step.

        Raises:
          UserError: In every process, if `attempt` failed in any; the state is saved if possible.
          Stopped: In every process, if any was asked to stop; the state is saved.
        """
        asked = self._first_signal
        own = 0 if asked is None else jax.process_index() * _MOST_SIGNALS + asked
        try:
            flag = distributed.agree(flag=own, error=self._failure)
            if not flag:
                return
        except UserError as error:
            save()
            raise self._resumable(error, step) from error
        save()
        try:
            # `save` may attempt what fails, such as to write the rows before the checkpoint.
            distributed.agree(error=self._failure)
        except UserError as error:
            raise self._resumable(error, step) from error
        is_last = step >= self._config.num_steps
        report = "the run is complete; `octograin report` writes the report"
        index, number = divmod(flag, _MOST_SIGNALS)
        cause = f"{signal.Signals(number).name} to process {index}" if asked is None else asked.name
        raise Stopped(asked, report if is_last else "continue with --resume", cause)

    def _resumable(self, error: UserError, step: int) -> UserError:
        """Adds to an error the training step that the run can resume from."""
        is_last = step >= self._config.num_steps
        way_on = "it is the last one" if is_last else "continue with --resume"
        remedy = f"The run is saved at step {step}: {way_on}. {error.remedy}"
        where, expected, found = error.where, error.expected, error.found
        return UserError(where=where, expected=expected, found=found, remedy=remedy)

    def _record(self, number: signal.Signals) -> None:
        self._recorded.append(number)
        # None: a handler that was not installed by Python.
        self._before[number] = signal.signal(number, self._receive) or signal.SIG_DFL

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._before.pop(number))

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        # The first one is the reason that is reported.
        self._first_signal = self._first_signal or signal.Signals(number)
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
                if number not in self._recorded:
                    continue
                name = signal.Signals(number).name
                if first_s is None:
                    first_s = now_s
                    when = "" if number == signal.SIGINT else " after 5 s"
                    _log.warning("%s: stopping; a second one%s ends the run unsaved", name, when)
                elif now_s - first_s >= _PATIENCE_S:
                    sys.stderr.write(
                        f"ended by a second {name}; --resume continues from the last checkpoint\n"
                    )
                    sys.stderr.flush()
                    # `os._exit`: the main thread may be waiting for a process that does not answer.
                    os._exit(128 + number)


@contextlib.contextmanager
def exclusion_named(config: TrainConfig) -> Iterator[None]:
    """Adds to the error of a corrupt record the flags that exclude the record.

    Raises:
      UserError: The error that `excludable` returns.
    """
    try:
        yield
    except RecordError as error:
        raise excludable(error, config) from error


def excludable(error: RecordError, config: TrainConfig) -> UserError:
    """Returns the error of a corrupt record with the flags that exclude the record."""
    flags = [
        f"--config.data.datasets.{number}.excluded "
        # A dict keeps the order and drops a record that was excluded before.
        + " ".join(dict.fromkeys((*part.excluded, error.record)))
        for number, part in enumerate(config.data.datasets)
        if part.path == error.dataset
    ]
    return UserError(
        where=error.where,
        expected=error.expected,
        found=error.found,
        remedy=f"{error.remedy} To continue without that record, add {' '.join(flags)}",
    )
