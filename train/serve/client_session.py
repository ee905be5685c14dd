"""What a server and its clients agree on: the protocol, the keys of observations, sessions."""

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from pipeline.config_checks import Problem, check
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from train.policy.chunk_execution import Execution, check_delay, make_execution
from train.policy.planned_actions import check_guided
from train.policy.policy import Policy
from train.serve.api_key import ApiKey

ProtocolName = Literal["openpi", "vla-eval"]
"""The messages of which clients a server understands."""
KEYS: Mapping[ProtocolName, Mapping[str, str]] = MappingProxyType(
    {
        "openpi": {
            "observation/image": "image_primary",
            "observation/wrist_image": "image_wrist",
            "observation/state": "proprio",
        },
        # Those of the LIBERO benchmark.
        "vla-eval": {"agentview": "image_primary", "wrist": "image_wrist", "states": "proprio"},
    }
)
"""Observation by key of a message, as the clients of each protocol send them."""
_UNNAMED: Mapping[ProtocolName, str] = MappingProxyType(
    {"openpi": "observation/{}", "vla-eval": "{}"}
)
"""Key of an observation that has none in `KEYS`."""


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What clients send and receive."""

    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Observation by key of a message, instead of the protocol's own keys for these
    observations."""
    execute_horizon: int | None = None
    """Reply with one action, and predict a new chunk after so many. None: reply with a chunk to
    openpi's clients; after all of its actions for vla-eval's benchmarks."""
    ensemble: float | None = None
    """Reply with one action, the mean of all chunks' predictions; this is the decay of their
    weights. None: no averaging."""
    protocol: ProtocolName = "openpi"
    """The messages that clients send: those of openpi's clients, or of vla-eval's benchmarks."""
    delay: int = 0
    """Reply with one action while the next chunk is predicted, which takes effect so many steps
    after its observation. 0: the client waits for predictions."""

    def __post_init__(self) -> None:
        """Raises an error if a field has another type, or is none of its modes."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields nothing: `make_execution` checks the ranges, which depend on the policy."""
        return iter(())

    @property
    def is_stepwise(self) -> bool:
        """Returns whether a reply is one action; otherwise it is a chunk, which clients execute."""
        if self.protocol == "vla-eval":
            return True
        return self.execute_horizon is not None or self.ensemble is not None

    @property
    def all_keys(self) -> dict[str, str]:
        """Returns the observation by key of a message, the protocol's own keys included."""
        # A key of the protocol's is dropped only where its observation has another one.
        kept = {k: n for k, n in KEYS[self.protocol].items() if n not in self.keys.values()}
        return kept | dict(self.keys)

    def check_api_key(self, api_key: ApiKey | None) -> None:
        """Checks that clients can send a key, if they must.

        Raises:
          UserError: Those of this protocol cannot.
        """
        if self.protocol == "vla-eval" and api_key is not None:
            raise UserError(
                where=api_key.where,
                expected="no API key with the protocol vla-eval",
                found="one",
                remedy="Benchmarks of vla-eval send no key: serve them without one, on 127.0.0.1 "
                "or a network of their own.",
            )

    def make_execution(self, policy: Policy) -> Execution | None:
        """Returns what executes an episode's chunks; None: the client does.

        Raises:
          UserError: `execute_horizon`, `ensemble` or `delay` is out of range, or two do not go
            together; there is an ensemble of poses whose numbers have no useful mean; or there is a
            delay, and the policy was made without real-time chunking.
        """
        if self.delay:
            self._check_delay(policy)
        made = make_execution(
            policy.action_horizon, policy.conventions, self.execute_horizon, self.ensemble
        )
        return made if self.is_stepwise else None

    def _check_delay(self, policy: Policy) -> None:
        if self.execute_horizon is None or self.ensemble is not None:
            raise UserError(
                where="delay",
                expected="an execute_horizon, the steps from one prediction to the next, and no "
                "ensemble",
                found=f"execute_horizon {self.execute_horizon}, ensemble {self.ensemble}",
                remedy=f"Give, for example, --execute_horizon {(policy.action_horizon + 1) // 2}.",
            )
        check_delay(self.delay, self.execute_horizon, policy.action_horizon)
        check_guided("delay", is_guided=policy.config.real_time_chunking)


@runtime_checkable
class Session(Protocol):
    """One client's conversation in the messages of its protocol; the server carries the bytes."""

    @property
    def greeting(self) -> bytes | None:
        """Returns the first frame that a client receives; None: the client speaks first."""
        ...

    def answer(self, data: bytes) -> dict[str, Any] | None:
        """Returns the reply to a frame, before packing; None: there is none.

        Raises:
          UserError: The frame is no message, or it does not fit; or the actions are not finite.
        """
        ...

    def pack(self, reply: dict[str, Any]) -> bytes:
        """Packs a reply."""
        ...

    def refusal(self, text: str) -> str | bytes:
        """Returns the frame that gives a client the reason why its last frame has no reply."""
        ...

    def close(self) -> None:
        """Forgets the episode, after the client has left."""
        ...


def expected_keys(policy: Policy, config: ServeConfig) -> dict[str, LeafSpec | None]:
    """Returns the observations that a message must contain, by its keys."""
    named = {name: key for key, name in config.all_keys.items()}
    unnamed = _UNNAMED[config.protocol]
    return {named.get(name, unnamed.format(name)): leaf for name, leaf in policy.expected.items()}
