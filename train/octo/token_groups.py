"""Token groups, the sequence that they form, and how it looks."""

import collections
import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util
from jaxtyping import Array, Bool, Float

from train.octo.attention import READOUT, Kind, Rule, Span, rule
from train.octo.octo_config import OctoConfig


@typing.no_type_check
@struct.dataclass
class TokenGroup:
    """Tokens from one source: float `(b n d)` for the task, `(b w n d)` for a step's groups."""

    tokens: jax.Array
    mask: jax.Array
    """Bool mask with the shape of `tokens` without `d`; True: real."""
    # Static: the kind decides the program, and is no array.
    kind: Kind = struct.field(pytree_node=False, default=Kind.OBSERVATION)
    """What the tokens represent."""


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


def pad_window(group: TokenGroup, window: int) -> TokenGroup:
    """Puts masked zeros in front of the steps of a group `(b v n d)`, up to `window` steps."""
    num_unread = window - group.tokens.shape[1]
    if not num_unread:
        return group
    unread = (0, 0), (num_unread, 0), (0, 0)
    return dataclasses.replace(
        group, tokens=jnp.pad(group.tokens, (*unread, (0, 0))), mask=jnp.pad(group.mask, unread)
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


def group_spans(config: OctoConfig) -> tuple[list[Span], list[Span]]:
    """Returns the token groups of a model: those before the window, and those of every step."""
    language = config.language
    prefix = [] if language is None else [Span("task_language", Kind.TASK, language.max_length)]
    counts = {f"obs_{o.name}": o.tokens_per_step for o in config.observations}
    # Geometry that is fused with a camera has no tokens of its own.
    timestep = [Span(name, Kind.OBSERVATION, count) for name, count in counts.items() if count]
    if config.repeat_task_tokens:
        timestep += [Span(f"obs_{s.name}", Kind.OBSERVATION, s.num_tokens) for s in prefix]
    # The same order as in the model, where the readout is last.
    return prefix, [*timestep, Span(READOUT, Kind.READOUT, config.num_readouts)]


def draw_tokens(config: OctoConfig, window: int) -> str:
    """Lists the groups with their tokens, and draws the attention mask: one line per group.

    Geometry tokens without a group of their own get a line below it.

    Args:
      config: The config of the model.
      window: Window size in steps.
    """
    prefix, timestep = group_spans(config)
    spans = [*prefix, *timestep]
    width = max(len(span.name) for span in spans)
    before, step = (sum(s.num_tokens for s in part) for part in (prefix, timestep))
    numbers = " ".join(f"{i:>2}" for i in range(1, len(spans) + 1))
    lines = [
        f"{before + window * step} tokens: {before}, then {step} in each of {window} steps",
        f"{'':{width + 3}}   tokens  attends to (o: also in earlier steps)",
        f"{'':{width + 3}}           {numbers}",
    ]
    for number, query in enumerate(spans, 1):
        marks = " ".join(f"{_mark(query, key):>2}" for key in spans)
        lines.append(f"{number:>2} {query.name:{width}} {query.num_tokens:>8}  {marks}")
    lines += [
        f"   {vggt.name}: {vggt.fusion} with obs_{vggt.camera}, no tokens"
        for vggt in config.geometry
        if not vggt.tokens_per_step
    ]
    return "\n".join(lines)


def draw_parameters(params: Any) -> str:
    """Returns a table of arrays and parameters: one line per part, and one for the total.

    Args:
      params: Nested arrays or shapes.
    """
    arrays = collections.Counter[str]()
    numbers = collections.Counter[str]()
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(params))
    for path, leaf in flat.items():
        part = "/".join(path[:2])
        arrays[part] += 1
        numbers[part] += math.prod(leaf.shape)
    width = max(map(len, arrays))
    lines = [f"{'':{width}}  arrays      numbers"]
    lines += [f"{part:{width}}  {arrays[part]:>6}  {numbers[part]:>11,}" for part in sorted(arrays)]
    lines.append(f"{'all':{width}}  {arrays.total():>6}  {numbers.total():>11,}")
    return "\n".join(lines)


def _mark(query: Span, key: Span) -> str:
    if rule(query, key) is Rule.NEVER:
        return "."
    # The prefix has no steps.
    return "x" if key.kind is Kind.TASK else "o"
