"""Prints a model: its tokens, its attention mask, and its parameters."""

import collections
import math
from typing import Any

from flax import traverse_util

from train.octo.attention import READOUT, Kind, Rule, Span, rule
from train.octo.octo_config import (
    ImageTokenizerConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    VGGTTokenizerConfig,
)


def group_spans(config: OctoConfig) -> tuple[list[Span], list[Span]]:
    """Returns the token groups of a model: those before the window, and those of every step."""
    language = config.language
    prefix = [] if language is None else [Span("task_language", Kind.TASK, language.max_length)]
    counts = {f"obs_{o.name}": _num_tokens(o) for o in config.observations}
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
        if not vggt.num_group_tokens
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


def _num_tokens(
    observation: ImageTokenizerConfig | LowdimTokenizerConfig | VGGTTokenizerConfig,
) -> int:
    if isinstance(observation, LowdimTokenizerConfig):
        return observation.num_dims
    if isinstance(observation, VGGTTokenizerConfig):
        return observation.num_group_tokens
    return observation.num_tokens


def _mark(query: Span, key: Span) -> str:
    if rule(query, key) is Rule.NEVER:
        return "."
    # The prefix has no steps.
    return "x" if key.kind is Kind.TASK else "o"
