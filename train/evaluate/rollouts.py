"""The evaluation loop: one policy, batched over simulators, until every trial has a result.

Simulators are in two groups that take turns, so that one simulates while the policy predicts for
the other:

    all simulators of a group reply -> one batch of predictions -> each executes its actions
                                       meanwhile the other group simulates

A simulator renders only the steps that the policy observes, not the other steps of a chunk.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from train.evaluate.libero.environment import Observation, Outcome
from train.evaluate.libero.simulator_pool import EnvPool, Lost, Reply
from train.evaluate.libero.suites import Trial
from train.evaluate.results import TrialResult
from train.evaluate.videos import VIDEOS_NAME, Film, Kept
from train.policy.chunk_execution import Execution

_log = logging.getLogger(__name__)

_ATTEMPTS = 2
"""Attempts at a trial whose simulator process is lost."""
_INITS = 1000
"""Upper bound for the number of initial states of a task."""


@runtime_checkable
class Actor(Protocol):
    """The interface of what acts; `train.policy.Policy` has it."""

    @property
    def window_size(self) -> int:
        """Returns the number of steps that it reads."""
        ...

    def reset(self, env: int, instruction: str) -> None:
        """Starts an episode in an environment."""
        ...

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Adds steps without predicting."""
        ...

    def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Returns chunks (h a) by environment."""
        ...

    def forget(self, env: int) -> None:
        """Drops an environment that has ended."""
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the rollouts."""

    seed: int
    """Seed to record in the results."""
    make_execution: Callable[[], Execution]
    """Makes a new execution of chunks, for each episode."""
    make_film: Callable[[Trial], Film] | None = None
    """Starts the video of a trial; None: no videos."""
    kept: Kept = "all"
    """Trials whose videos are kept."""


@dataclasses.dataclass
class _Episode:
    """A running trial."""

    trial: Trial
    attempt: int
    execution: Execution
    film: Film | None
    num_steps: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @functools.cached_property
    def env(self) -> int:
        """Returns the policy's environment number, which fixes the noise wherever it runs."""
        # From the trial alone: its noise does not depend on the worker or the order.
        return self.trial.task.index * _INITS + self.trial.init


def groups(workers: Sequence[int]) -> tuple[Sequence[int], ...]:
    """Returns two halves of the simulators, the first the larger; one if there is one simulator.

    A batch of predictions is as large as a half: `(0, 1, 2, 3, 4)` is `(0, 1, 2)` and `(3, 4)`.
    """
    size = -(-len(workers) // 2)
    return tuple(half for half in (workers[:size], workers[size:]) if half)


class Rollouts:
    """Runs trials of one policy in a pool of simulators.

    Args:
      policy: The policy that acts.
      pool: The simulators; it does not matter which worker runs a trial.
      options: Settings of the rollouts.
      on_result: Called with each trial's result when the trial has ended.
    """

    def __init__(
        self,
        policy: Actor,
        pool: EnvPool,
        options: Options,
        on_result: Callable[[TrialResult], None],
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._options = options
        self._on_result = on_result
        self._episodes: dict[int, _Episode] = {}
        self._waiting: collections.deque[Trial] = collections.deque()

    def run(self, trials: Sequence[Trial]) -> None:
        """Runs trials to their ends.

        Raises:
          UserError: An observation or action does not fit, or a task cannot be built.
        """
        self._waiting = collections.deque(trials)
        try:
            workers = self._pool.idle
            for worker in workers:
                self._begin_next(worker)
            # Strictly in turn, also where the other group is ready first: which trials form a batch
            # then does not depend on time.
            for group in itertools.cycle(groups(workers)):
                if not self._pool.num_busy:
                    break
                self._take_turn(group)
        finally:
            # An unfinished video is no video.
            for episode in self._episodes.values():
                if episode.film is not None:
                    episode.film.drop()

    def _take_turn(self, group: Sequence[int]) -> None:
        """Waits for all running simulators of a group, and lets them act."""
        running = [worker for worker in self._pool.busy if worker in group]
        answers = [self._pool.receive(running) for _ in running]
        # In one order, and not as they came.
        answers.sort(key=lambda answer: answer.worker)
        self._act([a for a in map(self._continued, answers) if a is not None])

    def _begin_next(self, worker: int) -> None:
        """Starts the next trial in a worker, if there is one."""
        # A worker without a trial has no episode.
        self._episodes.pop(worker, None)
        if self._waiting:
            self._begin(worker, self._waiting.popleft(), attempt=1)

    def _begin(self, worker: int, trial: Trial, attempt: int) -> None:
        make_film = self._options.make_film
        film = None if make_film is None else make_film(trial)
        episode = _Episode(trial, attempt, self._options.make_execution(), film)
        self._episodes[worker] = episode
        self._policy.reset(episode.env, trial.task.instruction)
        self._pool.begin(worker, trial)

    def _continued(self, answer: Reply | Lost) -> Reply | None:
        """Returns a worker's reply if it waits for actions; otherwise starts what comes next."""
        episode = self._episodes[answer.worker]
        if isinstance(answer, Lost):
            self._lose(answer, episode)
            return None
        episode.num_steps = answer.outcome.num_steps
        if answer.outcome.is_over:
            self._end(answer.worker, episode, answer.outcome)
            return None
        return answer

    def _act(self, replies: list[Reply]) -> None:
        """Predicts for waiting environments in one batch, and sends them their actions."""
        if not replies:
            return
        episodes = {reply.worker: self._episodes[reply.worker] for reply in replies}
        # Oldest first, before the steps that are predicted from.
        self._observe_earlier(replies, episodes)
        latest = {episodes[r.worker].env: r.observations[-1] for r in replies}
        for reply in replies:
            film = episodes[reply.worker].film
            if film is not None:
                film.add(reply.observations[-1])
        chunks = self._policy.infer(latest)
        for worker, episode in episodes.items():
            actions = episode.execution(chunks[episode.env])
            # The simulator renders only the last steps, which the window reads.
            self._pool.act(worker, actions, num_observed=self._policy.window_size)

    def _observe_earlier(self, replies: list[Reply], episodes: dict[int, _Episode]) -> None:
        """Gives the policy the earlier steps of its window, oldest first."""
        # The last observation goes to `infer`.
        for number in range(max(len(reply.observations) for reply in replies) - 1):
            seen = {
                episodes[reply.worker].env: reply.observations[number]
                for reply in replies
                if number < len(reply.observations) - 1
            }
            self._policy.observe(seen)

    def _lose(self, lost: Lost, episode: _Episode) -> None:
        """Repeats a lost trial once, then records an error."""
        _log.warning("%s", lost.error)
        # A lost process is often an accident, such as memory; twice is a failure of the trial.
        if episode.attempt < _ATTEMPTS:
            if episode.film is not None:
                episode.film.drop()
            # The policy starts the trial again with its first noise.
            self._policy.forget(episode.env)
            self._begin(lost.worker, episode.trial, episode.attempt + 1)
            return
        outcome = Outcome(episode.num_steps, is_success=False, is_over=True)
        self._end(lost.worker, episode, outcome, error=str(lost.error))

    def _end(
        self, worker: int, episode: _Episode, outcome: Outcome, error: str | None = None
    ) -> None:
        """Reports the result and starts the next trial."""
        trial = episode.trial
        self._policy.forget(episode.env)
        result = TrialResult(
            suite=trial.task.suite,
            task=trial.task.index,
            instruction=trial.task.instruction,
            init=trial.init,
            success=outcome.is_success,
            steps=outcome.num_steps,
            seconds=round(time.perf_counter() - episode.started, 3),
            seed=self._options.seed,
            error=error,
            video=self._kept_video(episode.film, outcome, error),
        )
        self._begin_next(worker)  # first, so that the simulator runs while the result is written
        self._on_result(result)

    def _kept_video(self, film: Film | None, outcome: Outcome, error: str | None) -> str | None:
        if film is None:
            return None
        if outcome.is_success and self._options.kept == "failures":
            film.drop()
            return None
        ended = "success" if outcome.is_success else "failure"
        name = film.keep("error" if error else ended)
        return name and f"{VIDEOS_NAME}/{name}"
