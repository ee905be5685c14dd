"""Checks that a message holds the observation and the instruction that a policy reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from train.policy.observations import REMEDY, describe, find_problems
from train.policy.policy import Policy
from train.serve.client_session import ServeConfig, expected_keys

MAX_PROMPT = 4096
"""Largest number of characters in an instruction; a policy reads the first few dozen."""


class MessageCheck:
    """Checks the observation and the instruction of messages, and names the observations.

    Args:
      policy: The policy that reads them.
      config: What clients send.
      prompt: Key of the instruction.
      optional: What else a message may have, for errors; empty: nothing.
    """

    def __init__(
        self, policy: Policy, config: ServeConfig, prompt: str, optional: str = ""
    ) -> None:
        self.expected = expected_keys(policy, config)
        self._names = dict(zip(self.expected, policy.expected, strict=True))
        self._prompt, self._optional = prompt, optional
        # A policy that reads no text gets messages without an instruction.
        self._reads_text = policy.spec.model.language is not None
        # A policy of the stored sizes refuses others, unless it was started with --resize.
        self._resize = policy.config.resize

    def __call__(
        self, values: Mapping[str, Any], prompt: Any, others: Sequence[str] = ()
    ) -> tuple[dict[str, Any], str]:
        """Returns the observation by the policy's names, and the instruction.

        Args:
          values: The values of a message, by key.
          prompt: Its instruction; None: it has none.
          others: Further problems of the message.

        Raises:
          UserError: Something is missing or does not fit; it lists everything.
        """
        problems = find_problems(values, self.expected, resize=self._resize)
        remedies = [REMEDY, *self._hints(values)] if problems else []
        of_prompt = self._prompt_problems(prompt)
        if of_prompt:
            remedies.append(f"Give the instruction as a str, under the key {self._prompt}.")
        if others and self._optional:
            remedies.append("Leave out what is optional, or give it as expected.")
        self.refuse([*problems, *of_prompt, *others], " ".join(remedies))
        return {name: values[key] for key, name in self._names.items()}, prompt or ""

    def refuse(self, problems: Sequence[str], remedy: str = REMEDY) -> None:
        """Raises a `UserError` with all problems, if there are any."""
        expected = describe(self.expected)
        if self._reads_text:
            expected += f", {self._prompt} str of at most {MAX_PROMPT} characters"
        if self._optional:
            expected += f"; optionally {self._optional}"
        if problems:
            raise UserError(
                where="message",
                expected=expected,
                found="; ".join(problems),
                remedy=remedy,
            )

    def _hints(self, values: Mapping[str, Any]) -> list[str]:
        """Returns the server's options that accept other names and sizes of what was sent."""
        given = {key: values.get(key) for key in self.expected}
        hints = []
        missing = next((key for key, value in given.items() if value is None), None)
        if missing is not None:
            name = self._names[missing]
            hints.append(f"If it has another key, start the server with --keys KEY={name}.")
        if not self._resize and any(
            map(_is_of_another_size, given.values(), self.expected.values())
        ):
            hints.append("Start the server with --resize to resize images.")
        return hints

    def _prompt_problems(self, prompt: Any) -> list[str]:
        if prompt is None:
            return [f"{self._prompt}: missing"] if self._reads_text else []
        if not isinstance(prompt, str):
            return [f"{self._prompt}: {kind_of(prompt)}"]
        if len(prompt) > MAX_PROMPT:
            return [f"{self._prompt}: str of {len(prompt)} characters"]
        return []


def _is_of_another_size(value: Any, leaf: LeafSpec | None) -> bool:
    """Returns whether this is an image with the channels of the expected one, and another size."""
    if leaf is None or leaf.dtype != "uint8" or not isinstance(value, np.ndarray):
        return False
    is_image = value.dtype == np.uint8 and value.ndim == len(leaf.shape)
    return is_image and value.shape[2:] == leaf.shape[2:] and value.shape != leaf.shape


def kind_of(value: Any) -> str:
    """Returns a text such as `int` or `bool[2]`."""
    if isinstance(value, np.ndarray):
        return str(LeafSpec(str(value.dtype), value.shape))
    return type(value).__name__
