"""Measures a served policy as a client on the same machine sees it."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from websockets.sync.client import connect

from pipeline.errors import UserError
from train.policy.policy import Policy
from train.serve.client_session import ServeConfig, expected_keys
from train.serve.in_thread import serving
from train.serve.openpi_protocol import CODEC, PROMPT

_INSTRUCTION = "pick up the bowl and place it on the plate"


@dataclasses.dataclass(frozen=True)
class ServeMeasurement:
    """What a client on the same machine measured, from packing a message to its actions."""

    num_calls: int
    """Number of calls after the first."""
    first_ms: float
    """First call after the server was ready; its instruction is new."""
    first_instruction_ms: float
    """The part of it that embeds the instruction."""
    p50_ms: float
    """Median of the other calls."""
    p99_ms: float
    """99th percentile of the other calls."""
    max_ms: float
    """Longest of the other calls."""
    calls_per_s: float
    """Calls per second of a client that does nothing else."""
    message_bytes: int
    """Size of a message."""
    reply_bytes: int
    """Size of a reply."""
    model_ms: float
    """Median time of the model; 0 if most actions are planned before."""
    tokens_ms: float
    """Median time of computing tokens."""
    inputs_ms: float
    """Median time of unpacking, checks, the history and transforms."""
    transfer_ms: float
    """Median time of packing, the socket and the server's threads."""
    first_cpu_ms: float
    """CPU time of the first call, of all threads of server and client."""
    cpu_ms: float
    """Median CPU time of the other calls."""

    @property
    def first_ratio(self) -> float:
        """Returns how many times the median the first call took."""
        return self.first_ms / self.p50_ms

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yields what is measured, its value, and what it covers."""
        of_first = f"{self.first_ratio:.2f} times the median"
        if self.first_instruction_ms:
            of_first += f"; {self.first_instruction_ms:.1f} ms of it for its instruction"
        yield "first call", f"{self.first_ms:.1f} ms", of_first
        yield "median", f"{self.p50_ms:.1f} ms", f"of the {self.num_calls} calls after it"
        yield "  model", f"{self.model_ms:.1f} ms", "until its actions are on the host"
        if self.tokens_ms:
            yield "  tokens", f"{self.tokens_ms:.1f} ms", "computed from images"
        yield "  inputs", f"{self.inputs_ms:.1f} ms", "unpacking, checks, history, transforms"
        yield "  transfer", f"{self.transfer_ms:.1f} ms", "packing, socket, threads"
        yield "99 %", f"{self.p99_ms:.1f} ms", ""
        yield "longest", f"{self.max_ms:.1f} ms", ""
        yield (
            "CPU time",
            f"{self.cpu_ms:.1f} ms",
            f"all threads; {self.first_cpu_ms:.1f} ms at first",
        )
        yield "calls per second", f"{self.calls_per_s:.1f}", "of one client that does nothing else"
        yield "message", f"{self.message_bytes:,} bytes", "the example observation"
        yield "reply", f"{self.reply_bytes:,} bytes", ""


def measure(policy: Policy, config: ServeConfig, num_calls: int) -> ServeMeasurement:
    """Serves a policy on a free port, and calls it from a client of openpi's protocol.

    Args:
      policy: The policy; `serving` warms it up, as `octograin serve` does.
      config: What clients send and receive.
      num_calls: Number of calls after the first.

    Raises:
      UserError: The policy refuses its example observation, such as by actions that are not finite;
        or the config is for another protocol.
    """
    if config.protocol != "openpi":
        raise UserError(
            where="--benchmark",
            expected="the protocol openpi, whose client measures",
            found=config.protocol,
            remedy="Leave out --protocol; --execute_horizon N gives one action per message too.",
        )
    example = policy.example_observation()
    keys = expected_keys(policy, config)
    message = dict(zip(keys, example.values(), strict=True)) | {PROMPT: _INSTRUCTION}
    with (
        serving(policy, config) as port,
        # Like openpi's client.
        connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as socket,
    ):
        socket.recv()
        calls = [_call(socket, message) for _ in range(1 + num_calls)]
    return _summarize(calls, len(CODEC.pack(message)))


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call, and what the server reported with it."""

    whole_ms: float
    cpu_ms: float
    reply_bytes: int
    server: dict[str, float]
    policy: dict[str, float]


def _call(socket: Any, message: dict[str, Any]) -> _Call:
    started, cpu_started = time.perf_counter(), time.process_time()
    socket.send(CODEC.pack(message))
    data = socket.recv()
    if isinstance(data, str):
        raise UserError(
            where="--benchmark, the policy's example observation",
            expected="actions",
            found=data,
            remedy="Fix it first; a client would get the same answer.",
        )
    reply = CODEC.unpack(data)
    whole_ms = 1000 * (time.perf_counter() - started)
    cpu_ms = 1000 * (time.process_time() - cpu_started)
    return _Call(whole_ms, cpu_ms, len(data), reply["server_timing"], reply["policy_timing"])


def _summarize(calls: list[_Call], message_bytes: int) -> ServeMeasurement:
    first, *others = calls
    whole_ms = np.array([call.whole_ms for call in others])
    infer_ms = np.array([call.server["infer_ms"] for call in others])
    stages = {
        name: np.array([call.policy.get(name, 0.0) for call in others])
        for name in ("infer_ms", "tokens_ms")
    }
    p50, p99 = np.percentile(whole_ms, [50, 99])
    return ServeMeasurement(
        num_calls=len(others),
        first_ms=first.whole_ms,
        first_instruction_ms=first.policy["instruction_ms"],
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=float(whole_ms.max()),
        calls_per_s=1000 / float(whole_ms.mean()),
        message_bytes=message_bytes,
        reply_bytes=first.reply_bytes,
        model_ms=float(np.median(stages["infer_ms"])),
        tokens_ms=float(np.median(stages["tokens_ms"])),
        # What a call takes for a known instruction belongs to its inputs.
        inputs_ms=float(np.median(infer_ms - stages["infer_ms"] - stages["tokens_ms"])),
        transfer_ms=float(np.median(whole_ms - infer_ms)),
        first_cpu_ms=first.cpu_ms,
        cpu_ms=float(np.median([call.cpu_ms for call in others])),
    )
