"""Who attends to whom: block-causal rules between groups of tokens, in plain numpy."""

import dataclasses
import enum
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

READOUT = "readout_action"
"""The token group whose output the head reads."""

PREFIX_TIMESTEP = -1
"""The step of tokens that stand before the window."""


class Kind(enum.Enum):
    """What a group of tokens stands for."""

    TASK = enum.auto()
    OBSERVATION = enum.auto()
    READOUT = enum.auto()


class Rule(enum.Enum):
    """Which tokens of another group a token may attend to."""

    NEVER = enum.auto()
    CAUSAL = enum.auto()
    """Those of its own step and of earlier ones."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A group's place in the sequence: `num_tokens` at a stretch."""

    name: str
    kind: Kind
    num_tokens: int


def rule(query: Span, key: Span) -> Rule:
    """Returns how tokens of `query` attend to tokens of `key`.

    Readouts read everything and are read by nobody but themselves, so that adding one changes no
    other token. The task does not see the observations.
    """
    if key.kind is Kind.READOUT:
        return Rule.CAUSAL if query.name == key.name else Rule.NEVER
    if query.kind is Kind.TASK and key.kind is Kind.OBSERVATION:
        return Rule.NEVER
    return Rule.CAUSAL


def layout(
    prefix: Sequence[Span], timestep: Sequence[Span], window: int, *, legacy: bool = False
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    """Returns the group and the step of every token of the sequence.

    For a prefix of 2 tokens, then groups of 1 and 2 tokens in a window of 2:

        group  0 0 | 1 2 2 | 1 2 2
        step  -1-1 | 0 0 0 | 1 1 1

    Args:
      prefix: Groups before the window.
      timestep: Groups that every step of the window has.
      window: Steps of the window.
      legacy: Count the first token of each group but the first to the group before it.

    Returns:
      Indices into `(*prefix, *timestep)`, and steps from -1 (the prefix) to `window - 1`.
    """
    first = len(prefix)
    prefix_groups = _groups(prefix, legacy=legacy)
    step_groups = first + _groups(timestep, legacy=legacy)
    groups = np.concatenate([prefix_groups, np.tile(step_groups, window)])
    steps = np.concatenate(
        [
            np.full(len(prefix_groups), PREFIX_TIMESTEP),
            np.repeat(np.arange(window), len(step_groups)),
        ]
    )
    return groups, steps


def _groups(spans: Sequence[Span], *, legacy: bool) -> Int[np.ndarray, " t"]:
    ends = np.cumsum([span.num_tokens for span in spans], dtype=np.int64)
    places = np.arange(ends[-1] if len(ends) else 0)
    return np.searchsorted(ends, places, side="left" if legacy else "right")


def rule_mask(
    prefix: Sequence[Span], timestep: Sequence[Span], window: int, *, legacy: bool = False
) -> Bool[np.ndarray, "t t"]:
    """Returns the rules as a matrix, queries in rows, keys in columns; True: may attend.

    Args:
      prefix: As in `layout`.
      timestep: As in `layout`.
      window: As in `layout`.
      legacy: With the fault of the models of December 2023; see `layout`.
    """
    spans = (*prefix, *timestep)
    causal = np.array([[rule(query, key) is Rule.CAUSAL for key in spans] for query in spans])
    groups, steps = layout(prefix, timestep, window, legacy=legacy)
    return causal[groups[:, None], groups[None, :]] & (steps[None, :] <= steps[:, None])


def attention_mask(
    rules: Bool[np.ndarray, "t t"], real: Bool[Array, "b t"]
) -> Bool[Array, "b 1 t t"]:
    """Returns the mask of the attention: the rules, less the keys that are padding.

    Only keys are masked. A query whose keys are all masked attends to everything alike (that is
    what the pretrained weights saw); nobody reads such a token.

    Args:
      rules: From `rule_mask`.
      real: True where a token is no padding.
    """
    return jnp.asarray(rules)[None, None] & real[:, None, None, :]
