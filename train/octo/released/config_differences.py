"""Compares the configs of two models: what their weights mean, and why shapes differ."""

import dataclasses
import re
from collections.abc import Collection, Iterator
from typing import Any

from train.octo.octo_config import DiffusionConfig, OctoConfig, VGGTTokenizerConfig

Differences = dict[str, tuple[Any, Any]]
"""By the path of a setting, its value in the model and in the checkpoint; None: it has none."""

_SIZES = re.compile(
    r".*_dim|d_.*|num_(heads|bins|buckets)|bins|stem_features|vocab_size|action_horizon|reduced_to"
    r"|more_layers"
)
"""Fields that determine the shapes of weights."""

_TOKENS = re.compile(
    r"embedding_dim|max_horizon|num_(readouts|dims|tokens)|image_size|stem_features|fusion"
    r"|reduced_to|max_length"
)
"""Fields that determine the shapes of position embeddings."""

_MODULES = re.compile(
    r"num_(layers|blocks)|stem_features|pooling|head|fusion|reduction|more_layers"
)
"""Fields that determine which tensors there are."""

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


def find_changed_meanings(ours: OctoConfig, theirs: OctoConfig) -> Differences:
    """Returns the differing settings that change what weights mean, at the same shapes.

    Only parts that both models have are compared. The order of the inputs has no meaning: every
    group of tokens has position embeddings of its own, and all follow one rule of attention.
    """
    here, there = _meaning(ours), _meaning(theirs)
    shared = [name for name in here if name in there]
    # Heads of other kinds have other parameters, which the shapes show.
    if type(ours.head) is not type(theirs.head):
        shared = [name for name in shared if not name.startswith("head")]
    return {name: (here[name], there[name]) for name in shared if here[name] != there[name]}


def _meaning(config: OctoConfig) -> dict[str, Any]:
    head, language = config.head, config.language
    # With its size in the name: chunks of another size have other shapes.
    chunk = f"head of {head.flat_dim} numbers, (action_horizon, action_dim)"
    found: dict[str, Any] = {
        "repeat_task_tokens": config.repeat_task_tokens,
        "legacy_attention": config.legacy_attention,
        chunk: (head.action_horizon, head.action_dim),
        "head.max_action": head.max_action,
    }
    if isinstance(head, DiffusionConfig):
        found["head.diffusion_steps"] = head.diffusion_steps
    if language is not None:
        found["language.t5.max_distance"] = language.t5.max_distance
    for image in config.images:
        found[f"images.{image.name}.observation_key"] = image.observation_key
    for lowdim in config.lowdims:
        place, bins = f"lowdims.{lowdim.name}", lowdim.bins
        found[f"{place}.observation_key"] = lowdim.observation_key
        if bins is not None:
            found[f"{place}.bins.spacing"] = bins.spacing
        # Normal bins have no bounds.
        if bins is not None and bins.spacing == "uniform":
            found |= {f"{place}.bins.low": bins.low, f"{place}.bins.high": bins.high}
    for vggt in config.geometry:
        found |= _geometry_meaning(vggt)
    return found


def _geometry_meaning(config: VGGTTokenizerConfig) -> dict[str, Any]:
    # The fusion is in the names: another one has other weights.
    name, fusion = f"vggt.{config.name}", f"of fusion {config.fusion!r}"
    found: dict[str, Any] = {f"{name}.more_layers": config.more_layers}
    if config.fusion not in ("tokens", "registers"):
        found[f"{name}.camera {fusion}"] = config.camera
    # Which tokens are patches changes what is read, at the same shapes.
    if config.fusion in ("features", "gated", "align") or config.reduction == "pool":
        found[f"{name}.num_special {fusion}"] = config.num_special
        found[f"{name}.grid {fusion}"] = config.patch_grid
    return found


def find_differences(ours: OctoConfig, theirs: OctoConfig) -> Differences:
    """Returns all settings in which two models differ.

    Of a part that only one of them has, or that is of another kind, only the part is listed.
    """
    here, there = dict(_settings(ours)), dict(_settings(theirs))
    changed = {n: (here.get(n), there.get(n)) for n in here | there if here.get(n) != there.get(n)}
    return {n: pair for n, pair in changed.items() if n.rpartition(".")[0] not in changed}


def _settings(config: OctoConfig) -> Iterator[tuple[str, Any]]:
    """Yields paths and values, such as `transformer.mlp_dim` and `images.wrist.stem_dim`."""
    # A camera that geometry tokens replace has no tensors.
    inputs = {"images": config.cameras, "lowdims": config.lowdims, "vggt": config.geometry}
    for name, value in vars(config).items():
        if name not in (*inputs, "more_vggt"):
            yield from _flatten(name, value)
    for name, parts in inputs.items():
        for part in parts:
            yield from _flatten(f"{name}.{part.name}", part)


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield path, type(value).__name__
        for name, inner in vars(value).items():
            yield from _flatten(f"{path}.{name}", inner)
    else:
        yield path, value


def find_cause(
    path: str, axes: Collection[tuple[int, int]] | None, differences: Differences
) -> str:
    """Returns the settings that are the likely reason why a tensor was not loaded.

    Args:
      path: Path of the tensor.
      axes: Lengths of each axis in the model and the checkpoint; None: only one has the tensor.
      differences: Settings that differ.
    """
    is_position = path.endswith("_pos_embedding")
    fields = _MODULES if axes is None else _TOKENS if is_position else _SIZES
    found = {
        name: pair
        for name, pair in differences.items()
        if _affects(name, path)
        # A part that only one has explains a missing tensor.
        and (fields.fullmatch(name.rpartition(".")[2]) or (axes is None and None in pair))
    }
    # A setting that is the length of an axis explains a weight best.
    best = {name: pair for name, pair in found.items() if fields is _SIZES and pair in (axes or ())}
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
        case ["images" | "lowdims" | "vggt", input_name, *_]:
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
