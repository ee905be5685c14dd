"""Compares the configs of two models: what their weights mean, and why shapes differ."""

import dataclasses
import re
from collections.abc import Collection, Iterator
from typing import Any

from train.octo.octo_config import BinsConfig, OctoConfig, VGGTTokenizerConfig
from train.octo.protocols import HeadConfig

Differences = dict[str, tuple[Any, Any]]
"""By the path of a setting, its value in the model and in the checkpoint; None: it has none."""


def _settings_named(fields: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({fields})")


_MEANING = _settings_named(
    r"repeat_task_tokens|legacy_attention|max_action|diffusion_steps|prediction|max_distance|spacing"
    r"|(images|lowdims|tokenizers)\.\w+\.observation_key|more_layers|\(.*|.* of fusion .*"
)
"""Settings that change what weights mean, but no shape. The order of the inputs is none of them:
every group of tokens has position embeddings of its own, and all follow one rule of attention."""

_SIZES = _settings_named(
    r"\w+_dim|d_\w+|num_(heads|bins|buckets)|bins|stem_features|vocab_size|action_horizon"
    r"|reduced_to|more_layers"
)
"""Settings that determine the shapes of weights."""

_TOKENS = _settings_named(
    r"embedding_dim|max_horizon|num_(readouts|dims|tokens)|image_size|stem_features|fusion"
    r"|reduced_to|max_length"
)
"""Settings that determine the shapes of position embeddings."""

_MODULES = _settings_named(
    r"num_(layers|blocks)|stem_features|pooling|fusion|reduction|more_layers|bins|head|language"
    r"|(images|lowdims|tokenizers|vggt)\.\w+"
)
"""Settings that determine which tensors there are."""

_INPUT = re.compile(
    r"octo_transformer/(?:obs_(\w+)_(?:projection|pos_embedding|fusion)|"
    r"(?:observation_tokenizers|alignments)_(\w+)/)"
)
"""Paths of the tensors of one input; one of the groups is the input's name."""

_PARTS = {
    "octo_transformer/BlockTransformer_0/": "transformer",
    "octo_transformer/task_": "language",
    "heads_action/": "head",
}
"""Parts of the config by the start of the paths of their tensors."""


def find_differences(ours: OctoConfig, theirs: OctoConfig) -> Differences:
    """Returns all settings in which two models differ.

    Of a part that only one of them has, or that is of another kind, only the part is listed.
    """
    here, there = dict(_settings(ours)), dict(_settings(theirs))
    changed = {n: (here.get(n), there.get(n)) for n in here | there if here.get(n) != there.get(n)}
    return {n: pair for n, pair in changed.items() if n.rpartition(".")[0] not in changed}


def find_changed_meanings(ours: OctoConfig, theirs: OctoConfig) -> Differences:
    """Returns the differing settings that no shape shows, of parts that both models have."""
    return {
        name: pair
        for name, pair in find_differences(ours, theirs).items()
        if _MEANING.fullmatch(name) and None not in pair
    }


def find_cause(
    path: str, axes: Collection[tuple[int, int]] | None, differences: Differences
) -> str:
    """Returns the settings that are the likely reason why a tensor was not loaded.

    Args:
      path: Path of the tensor.
      axes: Lengths of each axis in the model and the checkpoint; None: only one has the tensor.
      differences: From `find_differences`.
    """
    is_position = path.endswith("_pos_embedding")
    kind = _MODULES if axes is None else _TOKENS if is_position else _SIZES
    found = {
        name: pair
        for name, pair in differences.items()
        if kind.fullmatch(name) and _affects(name, path)
    }
    # A setting that is the length of an axis explains a weight best.
    best = {name: pair for name, pair in found.items() if kind is _SIZES and pair in (axes or ())}
    return "; ".join(_described(name, *pair) for name, pair in (best or found).items())


def _affects(name: str, path: str) -> bool:
    """Returns whether a setting can change the tensor of a path."""
    part = next((part for start, part in _PARTS.items() if path.startswith(start)), None)
    match name.split("."):
        case ["embedding_dim"]:
            return True
        case ["max_horizon"]:
            # The embeddings of a task have no steps.
            return part is None
        case ["num_readouts"]:
            return path.startswith("octo_transformer/readout_")
        case ["images" | "lowdims" | "tokenizers" | "vggt", input_name, *_]:
            found = _INPUT.match(path)
            return found is not None and input_name in found.groups()
        case [first, *_]:
            return first == part
        case _:
            return False


def _described(name: str, here: Any, there: Any) -> str:
    if here is None:
        return f"the checkpoint has {name}, the model has not"
    if there is None:
        return f"the model has {name}, the checkpoint has not"
    return f"{name} is {here}, the checkpoint has {there}"


def _settings(config: OctoConfig) -> Iterator[tuple[str, Any]]:
    """Yields paths and values, such as `transformer.mlp_dim` and `images.wrist.stem_dim`."""
    # A camera that geometry tokens replace has no tensors.
    inputs = {
        "images": config.cameras,
        "lowdims": config.lowdims,
        "tokenizers": config.tokenizers,
        "vggt": config.geometry,
    }
    for name, value in vars(config).items():
        if name not in (*inputs, "more_vggt"):
            yield from _flatten(name, value)
    for name, parts in inputs.items():
        for part in parts:
            yield from _flatten(f"{name}.{part.name}", part)


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not dataclasses.is_dataclass(value):
        yield path, value
        return
    # Its kind: a head may be of another one.
    yield path, type(value).__name__
    for name, inner in vars(value).items():
        yield from _flatten(f"{path}.{name}", inner)
    for name, inner in _combined(value):
        yield f"{path}.{name}", inner


def _combined(part: Any) -> Iterator[tuple[str, Any]]:
    """Yields settings of a part that have a meaning only together with others."""
    match part:
        # Normal bins have no bounds.
        case BinsConfig(spacing="uniform"):
            yield "(low, high)", (part.low, part.high)
        case HeadConfig(action_horizon=horizon, action_dim=size):
            # With the size in the name: chunks of another size have other shapes.
            yield f"(action_horizon, action_dim) of {horizon * size} numbers", (horizon, size)
        case VGGTTokenizerConfig(fusion=fusion):
            # With the fusion in the name: another one has other weights.
            if fusion not in ("tokens", "registers"):
                yield f"camera of fusion {fusion!r}", part.camera
            # Which tokens are patches changes what is read, at the same shapes.
            if fusion in ("features", "gated", "align") or part.reduction == "pool":
                yield f"num_special of fusion {fusion!r}", part.num_special
                yield f"grid of fusion {fusion!r}", part.patch_grid
