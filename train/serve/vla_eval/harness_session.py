"""The conversation with vla-eval, allenai's harness of benchmarks: one action per observation.

harness                                      server
HELLO, with the benchmark's class        ->
<-  HELLO: action_spec, observation_spec, observation_params
EPISODE_START                            ->
OBSERVATION                              ->
<-  ACTION with the observation's seq, or ERROR; the connection stays open
EPISODE_END                              ->

Source: vla-eval 0.8.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.bundled import VERSION
from pipeline.errors import UserError
from pipeline.terminal import escaped
from train.policy.policy import Policy
from train.serve.client_episodes import Episodes
from train.serve.client_session import ServeConfig
from train.serve.message_check import MessageCheck, kind_of
from train.serve.vla_eval.harness_codec import CODEC, EncodedImage
from train.serve.vla_eval.harness_conversion import Conversion
from train.serve.vla_eval.harness_specs import STATE_KEYS, action_spec, observation_spec

PROMPT = "task_description"
PROTOCOL_VERSION = 1
_MAX_SEQ = 1 << 62
_MAX_SHOWN = 200
_REMEDY = "Send it with vla-eval 0.8."

_log = logging.getLogger(__name__)


class VlaEvalSession:
    """The conversation with one benchmark process.

    Args:
      policy: The policy, shared with other sessions; only one may answer at a time.
      config: What the benchmark sends and receives.
      numbers: Gives every episode of the server a number, which determines its noise.
    """

    greeting = None

    def __init__(self, policy: Policy, config: ServeConfig, numbers: Iterator[int]) -> None:
        self._policy = policy
        self._config = config
        self._check = MessageCheck(policy, config, PROMPT)
        self._episodes = Episodes(policy, config, numbers)
        # None until HELLO: it depends on the benchmark.
        self._conversion: Conversion | None = None
        self._is_started = False
        # Number of the message that is answered; a harness compares it with its own.
        self._seq = 0

    def answer(self, data: bytes) -> dict[str, Any] | None:
        """Returns HELLO or ACTION, with `actions` float32 (a); None: a message without a reply.

        Args:
          data: The message.

        Raises:
          UserError: It is no message of the harness, or it does not fit, and all of it is listed;
            the benchmark has other conventions; or the predicted actions are not finite.
        """
        self._seq = 0
        kind, payload = self._read(CODEC.unpack(data))
        match kind:
            case "hello":
                return self._reply("hello", self._hello(payload))
            case "observation":
                return self._reply("action", {"actions": self._act(payload)})
            case "episode_start" | "episode_end":
                # The episode itself begins with its first observation, which has the instruction.
                self._episodes.end()
                self._is_started = kind == "episode_start"
                return None
            case _:
                error = payload.get("error")
                text = error[:_MAX_SHOWN] if isinstance(error, str) else kind_of(error)
                _log.warning("the benchmark reports: %s", escaped(text))
                return None

    def pack(self, reply: dict[str, Any]) -> bytes:
        """Packs a reply."""
        return CODEC.pack(reply)

    def refusal(self, text: str) -> bytes:
        """Returns an ERROR with the reason, which the harness raises in the episode."""
        return self.pack(self._reply("error", {"error": text}))

    def close(self) -> None:
        """Forgets the episode."""
        self._episodes.end()

    def _read(self, message: Any) -> tuple[str, dict[Any, Any]]:
        """Returns the type and the payload of a message."""
        fields: dict[Any, Any] = message if isinstance(message, dict) else {}
        kind, payload, seq = fields.get("type"), fields.get("payload"), fields.get("seq")
        # First, so that the error has it. True is an int as well, and an array may be sent.
        is_number = type(seq) is int and 0 <= seq < _MAX_SEQ
        self._seq = seq if is_number else 0
        known = ("hello", "observation", "episode_start", "episode_end", "error")
        problems = [] if isinstance(message, dict) else [f"a {kind_of(message)} instead of a map"]
        if not is_number:
            problems.append(f"seq {ascii(seq)[:60]}")
        if isinstance(kind, str) and kind in known and isinstance(payload, dict) and not problems:
            return kind, payload
        problems += [f"type {ascii(kind)[:60]}", f"payload {kind_of(payload)}"]
        raise UserError(
            where="message",
            expected=f"a map of type ({', '.join(known)}), payload, a map, and seq, a number",
            found="; ".join(problems),
            remedy=_REMEDY,
        )

    def _reply(self, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        return {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}

    def _hello(self, payload: Mapping[Any, Any]) -> dict[str, Any]:
        """Returns what the harness compares with its benchmark before the first episode."""
        version, benchmark = payload.get("protocol_version"), payload.get("benchmark")
        # An array has no truth value.
        is_known = isinstance(version, int) and version == PROTOCOL_VERSION
        if not is_known or not isinstance(benchmark, str | None):
            raise UserError(
                where="HELLO",
                expected=f"protocol_version {PROTOCOL_VERSION}, and the benchmark's class as text",
                found=f"protocol_version {ascii(version)[:60]}, benchmark {kind_of(benchmark)}",
                remedy=_REMEDY,
            )
        policy = self._policy
        self._conversion = Conversion(policy, benchmark)
        _log.info("benchmark %s", escaped(benchmark or "of no name")[:_MAX_SHOWN])
        return {
            "protocol_version": PROTOCOL_VERSION,
            "model_server": f"octograin {VERSION}",
            "capabilities": {},
            # Kept by the harness with its results.
            "policy": {
                "step": policy.step,
                "dataset": policy.spec.dataset,
                "address": policy.address,
            },
            "action_spec": action_spec(policy.spec, self._conversion.conventions),
            "observation_spec": observation_spec(policy, self._config),
            "observation_params": self._conversion.params,
        }

    def _act(self, payload: Mapping[Any, Any]) -> Any:
        """Returns the action that follows an observation, float32 (a)."""
        if self._conversion is None or not self._is_started:
            raise UserError(
                where="observation",
                expected="HELLO and EPISODE_START before it",
                found="neither" if self._conversion is None else "no EPISODE_START",
                remedy="Start an episode again: a lost connection ends it.",
            )
        values = {key: self._value(payload, key) for key in self._check.expected}
        missing = any(value is None for value in values.values())
        sent = [_describe_sent(payload)] if missing else []
        observation, prompt = self._check(values, payload.get(PROMPT), sent)
        if self._episodes.instruction is None:
            self._episodes.begin(prompt, self._conversion.grippers())
        elif prompt != self._episodes.instruction:
            # Some benchmarks give several tasks in one episode.
            self._episodes.instruct(prompt)
        return self._episodes.act(self._conversion.observation(observation))[0]

    def _value(self, payload: Mapping[Any, Any], key: str) -> Any:
        """Returns a value of an observation: a camera's image, or another entry; None: missing."""
        images = payload.get("images")
        if key in STATE_KEYS:
            value = next((payload[name] for name in STATE_KEYS if name in payload), None)
        elif isinstance(images, dict) and key in images:
            value = images[key]
        else:
            value = payload.get(key)
        if not isinstance(value, EncodedImage):
            return value
        try:
            return value.decode()
        except ValueError as error:
            self._check.refuse([f"{key}: {error}"])


def _describe_sent(payload: Mapping[Any, Any]) -> str:
    """Returns the names that an observation has, for `--keys`."""
    images = payload.get("images")
    cameras = [f"images/{key}" for key in images] if isinstance(images, dict) else []
    return "sent: " + (", ".join([*cameras, *map(str, payload)])[:_MAX_SHOWN] or "nothing")
