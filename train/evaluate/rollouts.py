"""The loop: one policy, batched over simulators, until every trial has its result.

    every simulator that is under way answers -> one batch -> each executes what was predicted

A simulator renders when the policy is to look, and not at the other steps of a chunk.
"""

import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.libero.environment import Observation, Outcome
from pipeline.libero.pool import EnvPool, Lost, Reply
from pipeline.libero.suites import Trial
from train.evaluate.results import TrialResult
from train.evaluate.videos import VIDEOS_NAME, Film, Kept
from train.policy.execution import Execution

_log = logging.getLogger(__name__)

_ATTEMPTS = 2
"""Of a trial whose simulator is lost."""
_INITS = 1000
"""More than a task has initial states."""


@runtime_checkable
class Actor(Protocol):
    """What acts; `train.policy.Policy` is one."""

    @property
    def window_size(self) -> int:
        """Steps that it reads."""
        ...

    def reset(self, env: int, instruction: str) -> None:
        """Starts an episode."""
        ...

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Adds steps without predicting."""
        ...

    def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Chunks (h a) by environment."""
        ...

    def forget(self, env: int) -> None:
        """Drops an environment."""
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """What is done beside acting."""

    seed: int
    """For the results."""
    make_execution: Callable[[], Execution]
    """A fresh way from chunks to actions, for an episode."""
    make_film: Callable[[Trial], Film] | None = None
    """Of a trial's video; None: there are none."""
    kept: Kept = "all"
    """Videos that stay."""


@dataclasses.dataclass
class _Episode:
    """A trial under way."""

    trial: Trial
    attempt: int
    execution: Execution
    film: Film | None
    num_steps: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @functools.cached_property
    def env(self) -> int:
        """The policy's number for it: the same whenever and wherever it runs, so is its noise."""
        return self.trial.task.index * _INITS + self.trial.init


class Rollouts:
    """Trials of one policy in a pool of simulators.

    Args:
      policy: What acts.
      pool: The simulators; their worker processes are used alike.
      options: What is done beside.
      on_result: Told each trial when it has ended.
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
          UserError: An observation or action that does not fit, or a task that cannot be built.
        """
        self._waiting = collections.deque(trials)
        try:
            for worker in self._pool.idle:
                self._begin_next(worker)
            while self._pool.num_busy:
                answers = [self._pool.receive() for _ in range(self._pool.num_busy)]
                self._act([a for a in map(self._continued, answers) if a is not None])
        finally:
            for episode in self._episodes.values():
                if episode.film is not None:
                    episode.film.drop()

    def _begin_next(self, worker: int) -> None:
        """Gives a worker the next trial, if there is one."""
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
        """The answer of a worker that waits for actions; of others, what follows is begun."""
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
        """Predicts for all who wait, in one batch, and lets them act."""
        if not replies:
            return
        episodes = {reply.worker: self._episodes[reply.worker] for reply in replies}
        self._observe_earlier(replies, episodes)
        latest = {episodes[r.worker].env: r.observations[-1] for r in replies}
        for reply in replies:
            film = episodes[reply.worker].film
            if film is not None:
                film.add(reply.observations[-1])
        chunks = self._policy.infer(latest)
        for worker, episode in episodes.items():
            actions = episode.execution(chunks[episode.env])
            self._pool.act(worker, actions, num_observed=self._policy.window_size)

    def _observe_earlier(self, replies: list[Reply], episodes: dict[int, _Episode]) -> None:
        """Shows the policy the steps of its window before the latest, oldest first."""
        for number in range(max(len(reply.observations) for reply in replies) - 1):
            seen = {
                episodes[reply.worker].env: reply.observations[number]
                for reply in replies
                if number < len(reply.observations) - 1
            }
            self._policy.observe(seen)

    def _lose(self, lost: Lost, episode: _Episode) -> None:
        """Once more, or an error."""
        _log.warning("%s", lost.error)
        if episode.attempt < _ATTEMPTS:
            if episode.film is not None:
                episode.film.drop()
            self._policy.forget(episode.env)
            self._begin(lost.worker, episode.trial, episode.attempt + 1)
            return
        outcome = Outcome(episode.num_steps, is_success=False, is_over=True)
        self._end(lost.worker, episode, outcome, error=str(lost.error))

    def _end(
        self, worker: int, episode: _Episode, outcome: Outcome, error: str | None = None
    ) -> None:
        """Tells the result and begins the next trial."""
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
        self._begin_next(worker)  # the simulator works while the result is written
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
