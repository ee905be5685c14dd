"""Decides which tokens attend to which: block-causal rules between token groups, in numpy."""

import dataclasses
import enum
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

READOUT = "readout_action"
"""Name of the token group whose output the head reads."""

PREFIX_TIMESTEP = -1
"""The step number of tokens in the prefix, before the window."""


class Kind(enum.Enum):
    """What a group of tokens represents."""

    TASK = enum.auto()
    OBSERVATION = enum.auto()
    READOUT = enum.auto()


class Rule(enum.Enum):
    """Which tokens of another group a token may attend to."""

    NEVER = enum.auto()
    CAUSAL = enum.auto()
    """Tokens of the same step and of earlier steps."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A token group in the sequence: `num_tokens` tokens in a row."""

    name: str
    kind: Kind
    num_tokens: int


def rule(query: Span, key: Span) -> Rule:
    """Returns how tokens of `query` attend to tokens of `key`.

    Readouts read everything, but only readouts of the same group read them: adding a readout
    changes no other token. The task does not attend to the observations.
    """
    # Before the other rules: the task does not read the readouts either.
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
      timestep: Groups of every step in the window.
      window: Number of steps in the window.
      legacy: Count the first token of each group, except the first, as part of the group before it.

    Returns:
      Indices into `(*prefix, *timestep)`, and steps from -1 (the prefix) to `window - 1`.
    """
    first = len(prefix)
    # Groups of the prefix are 0 .. first - 1, those of a step follow.
    prefix_groups = _groups(prefix, legacy=legacy)
    step_groups = first + _groups(timestep, legacy=legacy)
    # Every step has the same groups, so adding a step changes no other.
    groups = np.concatenate([prefix_groups, np.tile(step_groups, window)])
    steps = np.concatenate(
        [
            np.full(len(prefix_groups), PREFIX_TIMESTEP),
            # Each token's step: 0 0 0 1 1 1 ...
            np.repeat(np.arange(window), len(step_groups)),
        ]
    )
    return groups, steps


def _groups(spans: Sequence[Span], *, legacy: bool) -> Int[np.ndarray, " t"]:
    ends = np.cumsum([span.num_tokens for span in spans], dtype=np.int64)
    # Index of each token within its part.
    places = np.arange(ends[-1] if len(ends) else 0)
    # "left" reproduces the released bug: the first token of a group counts to the group before it.
    return np.searchsorted(ends, places, side="left" if legacy else "right")


def rule_mask(
    prefix: Sequence[Span], timestep: Sequence[Span], window: int, *, legacy: bool = False
) -> Bool[np.ndarray, "t t"]:
    """Returns the rules as a matrix: queries in rows, keys in columns; True: may attend.

    Args:
      prefix: Groups before the window.
      timestep: Groups of every step in the window.
      window: Number of steps in the window.
      legacy: Reproduce the bug in the models of December 2023; see `layout`.
    """
    spans = (*prefix, *timestep)
    # By group, not by token: a model has a few groups and hundreds of tokens.
    causal = np.array([[rule(query, key) is Rule.CAUSAL for key in spans] for query in spans])
    groups, steps = layout(prefix, timestep, window, legacy=legacy)
    # (t, t): the rule of the two groups, and not from the future; the prefix is step -1.
    return causal[groups[:, None], groups[None, :]] & (steps[None, :] <= steps[:, None])


def attention_mask(
    rules: Bool[np.ndarray, "t t"], real: Bool[Array, "b t"]
) -> Bool[Array, "b 1 t t"]:
    """Returns the attention mask: the rules without the keys that are padding.

    Only keys are masked. A query whose keys are all masked attends uniformly to all, as when the
    pretrained weights were trained; no other token reads such a query.

    Args:
      rules: The matrix that `rule_mask` returns.
      real: True where a token is not padding.
    """
    # (1, 1, t, t) & (b, 1, 1, t): keys that are padding, for every query and head.
    return jnp.asarray(rules)[None, None] & real[:, None, None, :]
