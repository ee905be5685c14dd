"""The messages of openpi's clients: an observation and the instruction in, actions out.

client                                       server
connects                                 ->
<-  the policy's metadata (`describe_policy`)
{"observation/image": ..., "prompt": ..} ->
<-  {"actions": ..., "policy_timing": ..., "server_timing": ...}
an observation that does not fit         ->
<-  a text frame with the reason; the connection stays open
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.files import to_json_values
from train.policy.policy import Policy
from train.serve.client_episodes import Episodes, Executed
from train.serve.client_session import ServeConfig, expected_keys
from train.serve.message_check import MessageCheck, kind_of
from train.serve.msgpack_codec import Codec

PROMPT = "prompt"
RESET = "reset"
EXECUTED, DELAY = "executed", "delay"
CODEC = Codec(str.encode, "Send it with openpi's client, or see docs/acting.md for the format.")


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
        "continues_chunks": policy.config.real_time_chunking and not config.is_stepwise,
        "conventions": to_json_values(conventions),
    }


class OpenpiSession:
    """The conversation with one of openpi's clients.

    An episode starts with the first message, with a message with `reset: True`, and with a new
    instruction.

    Args:
      policy: The policy, shared with other sessions; only one may answer at a time.
      config: What clients send and receive.
      numbers: Gives every episode of the server a number, which determines its noise.
    """

    def __init__(self, policy: Policy, config: ServeConfig, numbers: Iterator[int]) -> None:
        self.greeting = CODEC.pack(describe_policy(policy, config))
        self._policy = policy
        self._continues = policy.config.real_time_chunking and not config.is_stepwise
        optional = f"{RESET} True or False"
        if self._continues:
            optional += f", {EXECUTED} and {DELAY} integers"
        self._check = MessageCheck(policy, config, PROMPT, optional)
        self._episodes = Episodes(policy, config, numbers)

    def answer(self, data: bytes) -> dict[str, Any]:
        """Returns `actions`, float32 (h a), in the dataset's commands, and `policy_timing`.

        Args:
          data: The message: an observation by key, `prompt`, and optionally `reset`, or `executed`
            and `delay` for a chunk that continues the last one.

        Raises:
          UserError: Something is missing or does not fit, and all of it is listed; or the predicted
            actions are not finite.
        """
        message = CODEC.unpack(data)
        if not isinstance(message, dict):
            found = f"a {type(message).__name__} instead of a map"
            self._check.refuse([found], "Send one map, which has the values by these keys.")
        reset = message.get(RESET, False)
        wrong = [] if _is_flag(reset) else [f"{RESET}: {kind_of(reset)} instead of True or False"]
        executed = self._executed(message, wrong)
        observation, prompt = self._check(message, message.get(PROMPT), wrong)
        # A client that never sends "reset" still starts an episode with a new instruction.
        if reset or prompt != self._episodes.instruction:
            self._episodes.begin(prompt)
        actions = self._episodes.act(observation, executed)
        timing, late_ms = self._episodes.timing, self._episodes.late_ms
        # `infer_ms` is openpi's name for the time of the model.
        policy_timing = {"infer_ms": timing.model_ms, "instruction_ms": timing.instruction_ms}
        if self._policy.spec.tokens:
            policy_timing["tokens_ms"] = timing.tokens_ms
        reply = {"actions": actions, "policy_timing": policy_timing}
        return reply if late_ms is None else reply | {"server_timing": {"late_ms": late_ms}}

    def _executed(self, message: dict[Any, Any], wrong: list[str]) -> Executed | None:
        """Returns what was executed of the last chunk, if the message has it; adds problems."""
        values = [message[key] for key in (EXECUTED, DELAY) if key in message]
        if not values:
            return None
        if not self._continues:
            wrong.append(f"{EXECUTED}: for a server with --real_time_chunking, which sends chunks")
        elif len(values) == 1 or not all(map(_is_count, values)):
            kinds = ", ".join(map(kind_of, values))
            wrong.append(f"{EXECUTED} and {DELAY}: {kinds} instead of two integers")
        else:
            return Executed(*map(int, values))
        return None

    def pack(self, reply: dict[str, Any]) -> bytes:
        """Packs a reply."""
        return CODEC.pack(reply)

    def refusal(self, text: str) -> str:
        """Returns the reason as a text frame, which openpi's clients raise."""
        return text

    def close(self) -> None:
        """Forgets the episode."""
        self._episodes.end()


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    # A client's NumPy bool arrives as a scalar or as an array without axes.
    return isinstance(value, bool | np.bool_) or (
        isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.ndim == 0
    )
