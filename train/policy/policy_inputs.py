"""Turns environments' observations into the batch that the model reads, as the loader does.

What is read differs: the loader reads records, the policy keeps the last steps of its environments.
From there on both run the same transforms on the same arrays.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.schema import nest
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from pipeline.loading.text import tokenize
from pipeline.loading.transforms.batch_transforms import LookUpTask
from train.octo.heads.guidance import Guide
from train.policy.latency import StageClock
from train.policy.observations import (
    History,
    Observation,
    Steps,
    Task,
    check_environments,
    check_kind,
    check_observations,
    read_histories,
)
from train.policy.planned_actions import PlannedActions, guide_of, planned_batch
from train.policy.policy_spec import PolicySpec
from train.policy.rollout_tokens import TokenEncoder, needed_encoder, with_tokens


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """A batch of the model, and the way back from its actions."""

    arrays: dict[str, Any]
    """Nested arrays that the model reads, one row per environment."""
    restore: Callable[[np.ndarray], np.ndarray]
    """Returns predicted chunks in the dataset's units, 1 = open: float32 (b h a)."""
    guide: Guide | None = None
    """What the chunks are guided to, normalised; None: nothing is planned."""


class PolicyInputs:
    """Keeps environments' histories and makes batches of them.

    Args:
      spec: What the model reads.
      encoder: Computes the tokens, if the model reads any.
      batch_size: Number of environments that the encoder processes at once.
      resize: Whether to resize images of other sizes to the stored size; otherwise they are errors.
      clock: Measures the encoder; None: nothing does.

    Raises:
      UserError: The model reads tokens, and there is no encoder.
    """

    def __init__(
        self,
        spec: PolicySpec,
        encoder: TokenEncoder | None = None,
        *,
        batch_size: int = 1,
        resize: bool = False,
        clock: StageClock | None = None,
    ) -> None:
        self.spec = spec
        self._clock = clock or StageClock()
        self._encoder = needed_encoder(spec, encoder)
        self._batch_size = batch_size
        self._resize = resize
        self._histories: dict[int, History] = {}

    @property
    def expected(self) -> dict[str, LeafSpec | None]:
        """Returns what every observation must contain, by name; None: an image of any size."""
        cameras = self._encoder.cameras if self._encoder else ()
        # Cameras that only the encoder reads have no size that training knows.
        seen = {name: self.spec.features.get(f"observation/{name}") for name in cameras}
        return {**self.spec.observed, **seen}

    def reset(self, env: int, task: Task) -> None:
        """Clears an environment's history and gives it a task.

        Raises:
          UserError: The task does not fit; see `instruct`.
        """
        task = self._checked(task)
        self._histories[env] = History(task)

    def instruct(self, env: int, task: Task) -> None:
        """Gives an environment another task; its history is kept.

        Raises:
          UserError: The model was not trained on this kind of task, or goal images do not fit.
        """
        self._history(env).task = self._checked(task)

    def forget(self, env: int) -> None:
        """Drops everything about an environment, if there is anything."""
        self._histories.pop(env, None)

    def task(self, env: int) -> Task:
        """Returns the task of an environment."""
        return self._history(env).task

    def push(
        self, observations: Mapping[int, Observation], *, latest: bool = True
    ) -> dict[int, Steps]:
        """Adds a step to the history of each environment: of all of them, or of none.

        Args:
          observations: Observations by environment.
          latest: Whether a batch of this step will be made. Otherwise it is only part of the
            history, and tokens that are read only for the current step are not computed.

        Returns:
          The steps that each of these environments had before, for `rewind`.

        Raises:
          UserError: Observations do not fit, or an environment has no task.
        """
        check_environments(observations)
        # All are looked up and checked before any is changed.
        histories = {env: self._history(env) for env in observations}
        before = {env: history.steps for env, history in histories.items()}
        rows = list(check_observations(observations, self.expected, resize=self._resize).values())
        # With a window of 1, only the step of a prediction needs tokens.
        longest = max(map(self.spec.data.window_of, self.spec.tokens), default=0)
        if self._encoder and (latest or longest > 1):
            with self._clock.measured("tokens_ms"):
                rows = with_tokens(rows, self._encoder, self.spec.tokens, self._batch_size)
        for history, row in zip(histories.values(), rows, strict=True):
            history.push(self.spec.resize(row), self.spec.data.window_size)
        return before

    def rewind(self, before: Mapping[int, Steps]) -> None:
        """Gives environments the steps that they had before."""
        for env, steps in before.items():
            self._history(env).steps = steps

    def batch(self, envs: Sequence[int], plans: Sequence[PlannedActions] = ()) -> ModelInputs:
        """Returns the batch of environments that have observed a step: one row each.

        Args:
          envs: Numbers of the environments.
          plans: Planned actions of each, or of none.
        """
        histories = [self._history(env) for env in envs]
        chain, language = self.spec.chain, self.spec.model.language
        spec = self.spec
        names = (*spec.observed, *spec.tokens)
        read = read_histories(histories, spec.before, spec.read, names)
        if plans:
            # Forwards through the chain with the new observation, as in training.
            read |= planned_batch(plans, self.spec.before)
        traced = chain.trace(read)
        batch = traced[-1]
        if language is not None:
            texts = [history.task.text for history in histories]
            table = tokenize(texts, self.spec.encode, language.max_length)
            # The loader's own transform; each environment has its row of the table.
            batch = LookUpTask(table, (np.arange(len(texts), dtype=np.int32),))(batch)
        # In the order of `leaves`, and nothing else.
        arrays = nest_inputs({key: batch[key] for key in self.spec.leaves})
        guide = guide_of(plans, traced[-1]) if plans else None
        return ModelInputs(arrays, functools.partial(chain.invert, traced=traced), guide)

    def _history(self, env: int) -> History:
        if env not in self._histories:
            raise UserError(
                where=f"environment {env}",
                expected="a task",
                found="none: it was not reset",
                remedy="Call reset(env, instruction) at the start of its episode.",
            )
        return self._histories[env]

    def _checked(self, task: Task) -> Task:
        """Returns the task with resized goal images, if it fits the policy."""
        check_kind(task, self.spec.data.conditioning)
        # What the dataset lacked has no goal images either.
        cameras = [name for name in self.spec.cameras if name in self.spec.observed]
        expected = {name: self.spec.observed[name] for name in cameras if task.goal}
        goal = check_observations({0: task.goal}, expected, resize=self._resize)[0]
        return Task(task.text, self.spec.resize(goal))


def nest_inputs(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nests what a model reads by path; one without observations or a task gets both keys too."""
    return {"observation": {}, "task": {}} | nest(flat)
