"""Token groups, and the sequence that they form."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from train.octo.attention import Kind, Span


@typing.no_type_check
@struct.dataclass
class TokenGroup:
    """Tokens from one source: float `(b n d)` for the task, `(b w n d)` for a step's groups."""

    tokens: jax.Array
    mask: jax.Array
    """Bool mask with the shape of `tokens` without `d`; True: real."""
    # Static: the kind decides the program, and is no array.
    kind: Kind = struct.field(pytree_node=False)


Groups = Mapping[str, TokenGroup]


def spans(groups: Groups) -> list[Span]:
    """Returns name, kind and number of tokens of each group."""
    return [Span(name, group.kind, group.tokens.shape[-2]) for name, group in groups.items()]


def concatenate(groups: Sequence[TokenGroup]) -> TokenGroup:
    """Joins groups to one, in order; it has the kind of the first group."""
    return TokenGroup(
        # Axis -2 are the tokens, with or without a window in front.
        tokens=jnp.concatenate([group.tokens for group in groups], axis=-2),
        mask=jnp.concatenate([group.mask for group in groups], axis=-1),
        kind=groups[0].kind,
    )


def repeat_over_window(group: TokenGroup, window: int) -> TokenGroup:
    """Repeats a prefix group `(b n d)` as an observation of each step, `(b w n d)`."""
    return TokenGroup(
        tokens=jnp.repeat(group.tokens[:, None], window, axis=1),
        mask=jnp.repeat(group.mask[:, None], window, axis=1),
        # A task token that is repeated counts as an observation of its step.
        kind=Kind.OBSERVATION,
    )


def assemble(prefix: Groups, timestep: Groups) -> tuple[Float[Array, "b t d"], Bool[Array, "b t"]]:
    """Returns the sequence and its padding mask: the prefix, then one step after the other.

    Args:
      prefix: Groups before the window, `(b n d)`.
      timestep: Groups of every step, `(b w n d)`, with the same window length.
    """
    # All groups of a step side by side, so that one reshape makes the sequence.
    step = concatenate(list(timestep.values()))
    b, w, n, d = step.tokens.shape
    before = list(prefix.values())
    # Step after step: the tokens of a step stay together.
    tokens = [*(group.tokens for group in before), step.tokens.reshape(b, w * n, d)]
    masks = [*(group.mask for group in before), step.mask.reshape(b, w * n)]
    return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)


def split(
    sequence: Float[Array, "b t d"], prefix: Groups, timestep: Groups
) -> dict[str, TokenGroup]:
    """Splits `sequence` into groups of tokens; the inverse of `assemble`.

    Args:
      sequence: Tokens in the order of `assemble`.
      prefix: The prefix groups passed to `assemble`; their masks and kinds are kept.
      timestep: The step groups passed to `assemble`; their masks and kinds are kept.
    """
    groups, start = {}, 0
    for name, group in prefix.items():
        stop = start + group.tokens.shape[1]
        # The masks stay those that went in.
        groups[name] = dataclasses.replace(group, tokens=sequence[:, start:stop])
        start = stop
    b, w = next(iter(timestep.values())).tokens.shape[:2]
    # (b, w, tokens of a step, d)
    steps = sequence[:, start:].reshape(b, w, -1, sequence.shape[-1])
    start = 0
    for name, group in timestep.items():
        stop = start + group.tokens.shape[2]
        groups[name] = dataclasses.replace(group, tokens=steps[:, :, start:stop])
        start = stop
    return groups
