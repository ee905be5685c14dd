"""Runs several simulators, each in its own process, for a policy that is batched over them.

    pool.begin(worker, trial)             at most one request a worker is under way
    pool.act(worker, actions)
    pool.receive() -> Reply | Lost        whichever worker is first; Lost: begin the trial again

A policy that is batched over workers receives all their answers, infers once, and lets each of them
act.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import time
import types
from collections.abc import Callable, Collection
from multiprocessing.process import BaseProcess

import numpy as np

from pipeline.errors import UserError
from pipeline.worker_lifetime import Portable
from train.evaluate.libero.environment import Observation, Outcome
from train.evaluate.libero.simulator_worker import Act, Begin, Connection, Crash, Env, serve
from train.evaluate.libero.suites import Trial

_log = logging.getLogger(__name__)

# A simulator takes up to 25 s to build, and a driver may hang.
_TIMEOUT_S = 300.0
_CLOSE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Reply:
    """A worker's answer."""

    worker: int
    """Its number, from 0."""
    trial: Trial
    """The trial under way."""
    outcome: Outcome
    """State of the trial."""
    observations: tuple[Observation, ...]
    """The latest last. None after the step that ended the trial."""


@dataclasses.dataclass(frozen=True)
class Lost:
    """A worker that died, failed or timed out. It has been replaced and waits for a trial."""

    worker: int
    """Its number."""
    trial: Trial
    """The trial it was running; `begin` it again, or raise `error`."""
    error: UserError
    """What happened, and where."""


@dataclasses.dataclass
class _Worker:
    """A process, this end of its pipe, and what is under way."""

    process: BaseProcess
    connection: Connection
    trial: Trial | None = None
    is_busy: bool = False
    asked: float = 0.0


class EnvPool:
    """Workers that run trials side by side; a context manager.

    Leaving the block ends all of them, after Ctrl-C or another exception at once. They end as well
    where this process is killed.

    Args:
      make: Makes a worker's environment, in its process; picklable, such as a
        `functools.partial(LiberoEnv, installation, conventions)`.
      num_workers: Processes, at least 1. Each holds a simulator of about 1 GB.
      timeout_s: A worker that has not answered after this long is taken for lost. Building a
        simulator is part of the first answer.
    """

    def __init__(
        self, make: Callable[[], Env], num_workers: int, *, timeout_s: float = _TIMEOUT_S
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        self._make = make
        self._timeout_s = timeout_s
        # Rendering contexts and jax do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        try:
            # One after the other: an error must find those that were started.
            for _ in range(num_workers):
                self._workers.append(self._start())
        except BaseException:
            self._stop(at_once=True)
            raise

    def __enter__(self) -> "EnvPool":
        """The pool, whose workers have been started."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Ends the workers."""
        self._stop(at_once=error is not None)

    @property
    def idle(self) -> tuple[int, ...]:
        """Workers without a request under way, in order."""
        return tuple(n for n, worker in enumerate(self._workers) if not worker.is_busy)

    @property
    def busy(self) -> tuple[int, ...]:
        """Workers whose answer is still to be received, in order."""
        return tuple(n for n, worker in enumerate(self._workers) if worker.is_busy)

    @property
    def num_busy(self) -> int:
        """Answers that are still to be received."""
        return len(self.busy)

    def begin(self, worker: int, trial: Trial) -> None:
        """Lets a worker start a trial; its answer holds one observation.

        Raises:
          RuntimeError: Where a request of that worker is under way.
        """
        self._workers[worker].trial = trial
        self._send(worker, Begin(trial))

    def act(self, worker: int, actions: np.ndarray, num_observed: int = 1) -> None:
        """Lets a worker execute actions of the trial under way, until it is over.

        Args:
          worker: Its number.
          actions: (n, a), in the dataset's units with 1 = open for the gripper.
          num_observed: For how many of the last actions the answer holds the observation after it:
            as many as the policy's window has steps. Others are not rendered.

        Raises:
          RuntimeError: Where a request of that worker is under way, or no trial.
        """
        if not len(actions):
            raise ValueError("actions is empty: nothing would be answered")
        if self._workers[worker].trial is None:
            raise RuntimeError(f"worker {worker} has no trial: begin one")
        self._send(worker, Act(np.array(actions), num_observed))

    def receive(self, workers: Collection[int] | None = None) -> Reply | Lost:
        """Returns the next answer; if several are ready, the one to the oldest request.

        Args:
          workers: Only answers of these workers; None: of any.

        Raises:
          UserError: What a worker found wrong: an action, an initial state, its assets.
          RuntimeError: Where no request is under way.
        """
        busy = [n for n in self.busy if workers is None or n in workers]
        if not busy:
            raise RuntimeError("no request is under way")
        # By age, so that no worker waits forever behind faster ones.
        number = self._await(sorted(busy, key=lambda n: self._workers[n].asked))
        if number is None:
            number = min(busy, key=lambda n: self._workers[n].asked)
            return self._lose(number, f"no answer after {self._timeout_s:g} s")
        worker = self._workers[number]
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            # The pipe ends where the process died.
            # Its exit code is known only after it was waited for.
            worker.process.join(_CLOSE_S)
            return self._lose(number, _ending(worker.process.exitcode))
        worker.is_busy = False
        # A mistake of the user ends the evaluation; it would happen in every trial.
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, Crash):
            _log.warning("simulator process %d: %s", number, answer.details)
            return self._lose(number, answer.text)
        outcome, observations = answer
        assert worker.trial is not None
        return Reply(number, worker.trial, outcome, observations)

    # --- the processes

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        # A daemon, so that it does not outlive this process at its normal end.
        process = self._context.Process(
            target=Portable(serve), args=(theirs, self._make), daemon=True
        )
        process.start()
        theirs.close()  # so that this end meets the end of file where the process dies
        return _Worker(process, ours)

    def _send(self, number: int, request: Begin | Act) -> None:
        worker = self._workers[number]
        if worker.is_busy:
            raise RuntimeError(f"worker {number} has not answered yet: receive first")
        worker.is_busy, worker.asked = True, time.monotonic()
        with contextlib.suppress(OSError):  # it died: `receive` tells
            worker.connection.send(request)

    def _await(self, busy: list[int]) -> int | None:
        """The first of some workers that has answered or ended; None where the oldest is late."""
        # In the order of their requests, which `next` below keeps.
        connections = {self._workers[n].connection: n for n in busy}
        left = self._workers[busy[0]].asked + self._timeout_s - time.monotonic()
        ready = multiprocessing.connection.wait(list(connections), max(left, 0.0))
        return next((n for connection, n in connections.items() if connection in ready), None)

    def _lose(self, number: int, found: str) -> Lost:
        """Replaces a worker; one that only failed is replaced too: its simulator may be broken."""
        worker = self._workers[number]
        _end([worker], at_once=True)
        self._workers[number] = self._start()
        assert worker.trial is not None
        error = UserError(
            where=f"{worker.trial}, simulator process {number}",
            expected="an answer",
            found=found,
            remedy="Try the trial again; where it was killed, run fewer simulators: each takes "
            "about 1 GB.",
        )
        return Lost(number, worker.trial, error)

    def _stop(self, *, at_once: bool) -> None:
        _end(self._workers, at_once=at_once)
        self._workers = []


def _end(workers: list[_Worker], *, at_once: bool) -> None:
    """Ends processes and waits for them, so that none is left as a zombie."""
    for worker in workers:
        worker.connection.close()  # one that waits for a request ends by itself
        # A simulator inside a step would not see the end of the pipe.
        if at_once:
            worker.process.kill()
    # One deadline for all: they end side by side.
    deadline = time.monotonic() + _CLOSE_S
    for worker in workers:
        worker.process.join(max(deadline - time.monotonic(), 0.0))
        if worker.process.is_alive():
            worker.process.kill()
            # Waited for once more, or a zombie would be left.
            worker.process.join()


def _ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"it was killed by signal {-code}, perhaps for want of memory"
    return f"it ended with exit code {code}"
