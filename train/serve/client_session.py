"""One client's session: its messages are observations of an environment, replies are actions."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import to_json_values
from pipeline.loading.batch import LeafSpec
from train.policy.chunk_execution import Execution, make_execution
from train.policy.gripper_commands import GripperCommands
from train.policy.observations import REMEDY, describe, find_problems
from train.policy.policy import Policy

PROMPT = "prompt"
RESET = "reset"
MAX_PROMPT = 4096
"""Largest number of characters in an instruction; a policy reads the first few dozen."""
OPENPI_KEYS = {
    "observation/image": "image_primary",
    "observation/wrist_image": "image_wrist",
    "observation/state": "proprio",
}
"""Observation by key of a message, as openpi's clients send them."""


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What clients send and receive."""

    keys: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(OPENPI_KEYS))
    """Observation by key of a message. One without a key is expected as `observation/<name>`."""
    execute_horizon: int | None = None
    """Reply with one action, and predict a new chunk after so many. None: reply with a chunk."""
    ensemble: float | None = None
    """Reply with one action, the mean of all chunks' predictions; this is the decay of their
    weights. None: no averaging."""

    @property
    def is_stepwise(self) -> bool:
        """Returns whether a reply is one action."""
        return self.execute_horizon is not None or self.ensemble is not None


def expected_keys(policy: Policy, config: ServeConfig) -> dict[str, LeafSpec | None]:
    """Returns what a message must contain besides the instruction, by its keys."""
    named = {name: key for key, name in config.keys.items()}
    return {named.get(n, f"observation/{n}"): spec for n, spec in policy.expected.items()}


def describe_policy(policy: Policy, config: ServeConfig) -> dict[str, Any]:
    """Returns the metadata that a client receives when it connects, as plain values."""
    spec, conventions = policy.spec, policy.conventions
    observations = {
        key: None if leaf is None else {"dtype": leaf.dtype, "shape": list(leaf.shape)}
        for key, leaf in expected_keys(policy, config).items()
    }
    (action_dim,) = spec.features["action"].shape
    return {
        "step": policy.step,
        "dataset": spec.dataset,
        "observations": observations,
        "actions": [1 if config.is_stepwise else policy.action_horizon, action_dim],
        "action_dims": list(spec.action_dims),
        "action_horizon": policy.action_horizon,
        "window_size": policy.window_size,
        "conventions": to_json_values(conventions),
    }


class Session:
    """A client's episodes, one after the other.

    An episode starts with the first message, with a message with `reset: True`, and with a new
    instruction.

    Args:
      policy: The policy, shared with other sessions; only one may answer at a time.
      config: What clients send and receive.
      numbers: Gives every episode of the server a number, which determines its noise.
    """

    def __init__(self, policy: Policy, config: ServeConfig, numbers: Iterator[int]) -> None:
        self._policy = policy
        self._config = config
        # Shared by all sessions, so that no two episodes have the same number, and so the same
        # noise.
        self._numbers = numbers
        self._expected = expected_keys(policy, config)
        self._names = dict(zip(self._expected, policy.expected, strict=True))
        self._env: int | None = None
        self._prompt = ""
        # Needs its own for every episode: an ensemble keeps chunks.
        self._execution: Execution = self._new_execution()
        self._grippers = GripperCommands.of(policy.spec)
        self._planned: collections.deque[np.ndarray] = collections.deque()

    def answer(self, message: Any) -> dict[str, np.ndarray]:
        """Returns `actions`, float32 (h a), in the dataset's commands, ready to be executed.

        Args:
          message: The message: an observation by key, `prompt`, and optionally `reset`.

        Raises:
          UserError: Something is missing or does not fit, and all of it is listed; or the predicted
            actions are not finite.
        """
        self._check(message)
        # A policy that reads no text gets messages without a prompt.
        prompt = message.get(PROMPT) or ""
        # A client that never sends "reset" still starts an episode with a new instruction.
        if self._env is None or prompt != self._prompt or message.get(RESET, False):
            env = self._begin(prompt)
        else:
            env = self._env
        shown = {env: {name: message[key] for key, name in self._names.items()}}
        # The history needs every step, also those between predictions.
        if self._planned:
            self._policy.observe(shown)
        else:
            chunk = self._policy.infer(shown)[env]
            # The client executes the chunk itself.
            if not self._config.is_stepwise:
                return {"actions": self._grippers(chunk)}
            self._planned.extend(self._execution(chunk))
        # (1, a): a reply always has the axis of the chunk.
        action = self._planned.popleft()[None]
        return {"actions": self._grippers(action)}

    def close(self) -> None:
        """Forgets the episode."""
        if self._env is not None:
            self._policy.forget(self._env)
        self._env = None

    def _begin(self, prompt: str) -> int:
        """Starts a new episode and returns its number."""
        # The policy keeps the images of a window until the old episode is forgotten.
        self.close()
        env = next(self._numbers)
        self._policy.reset(env, prompt)
        self._env, self._prompt = env, prompt
        self._execution = self._new_execution()
        self._grippers = GripperCommands.of(self._policy.spec)
        self._planned.clear()
        return env

    def _new_execution(self) -> Execution:
        config = self._config
        return make_execution(self._policy.action_horizon, config.execute_horizon, config.ensemble)

    def _check(self, message: Any) -> None:
        reads_text = self._policy.spec.model.language is not None
        expected = describe(self._expected)
        if reads_text:
            expected += f", {PROMPT} str of at most {MAX_PROMPT} characters"
        if isinstance(message, dict):
            # A policy of the stored sizes refuses others, unless it was started with --resize.
            resize = self._policy.config.resize
            problems = find_problems(message, self._expected, resize=resize)
            problems += _prompt_problems(message, is_needed=reads_text)
            if not _is_flag(message.get(RESET, False)):
                problems.append(f"{RESET}: {_kind(message[RESET])} instead of True or False")
        else:
            problems = [f"a {type(message).__name__} instead of a map"]
        if problems:
            raise UserError(
                where="message", expected=expected, found="; ".join(problems), remedy=REMEDY
            )


def _prompt_problems(message: Mapping[str, Any], *, is_needed: bool) -> list[str]:
    """Returns what is wrong with an instruction; it may be missing unless it is needed."""
    prompt = message.get(PROMPT)
    if prompt is None and not is_needed:
        return []
    if not isinstance(prompt, str):
        return [f"{PROMPT}: {_kind(prompt) if PROMPT in message else 'missing'}"]
    if len(prompt) > MAX_PROMPT:
        return [f"{PROMPT}: str of {len(prompt)} characters"]
    return []


def _is_flag(value: Any) -> bool:
    # A client's NumPy bool arrives as a scalar or as an array without axes.
    return isinstance(value, bool | np.bool_) or (
        isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.ndim == 0
    )


def _kind(value: Any) -> str:
    """Returns a text such as `int` or `bool[2]`."""
    if isinstance(value, np.ndarray):
        return str(LeafSpec(str(value.dtype), value.shape))
    return type(value).__name__
