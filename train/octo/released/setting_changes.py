"""Lists settings that change what a model's weights mean without changing their shapes."""

from typing import Any

from train.octo.octo_config import (
    DiffusionConfig,
    HeadConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    VGGTTokenizerConfig,
)


def find_differences(ours: OctoConfig, theirs: OctoConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the settings in which two models differ, and the value of either.

    Only parts that both have are compared. The order of the inputs is no such setting: every group
    of tokens has position embeddings of its own, and all follow one rule of attention.

    Args:
      ours: A model.
      theirs: Another.
    """
    here, there = _settings(ours), _settings(theirs)
    # Heads of other kinds have other parameters, which the shapes show.
    if type(ours.head) is type(theirs.head):
        here |= _head_settings(ours.head)
        there |= _head_settings(theirs.head)
    # A setting that only one has belongs to an input that the other lacks.
    shared = [name for name in here if name in there]
    return {name: (here[name], there[name]) for name in shared if here[name] != there[name]}


def _settings(config: OctoConfig) -> dict[str, Any]:
    """The values by their place in the config."""
    settings: dict[str, Any] = {
        "repeat_task_tokens": config.repeat_task_tokens,
        "legacy_attention": config.legacy_attention,
    }
    for observation in config.observations:
        settings[f"{observation.name}.observation_key"] = observation.observation_key
        if isinstance(observation, LowdimTokenizerConfig):
            settings |= _bin_settings(observation)
    for vggt in config.geometry:
        settings |= _geometry_settings(vggt)
    if config.language is not None:
        settings["language.t5.max_distance"] = config.language.t5.max_distance
    return settings


def _bin_settings(config: LowdimTokenizerConfig) -> dict[str, Any]:
    """Normal bins have no bounds."""
    bins, place = config.bins, f"{config.name}.bins"
    if bins is None:
        return {}
    settings: dict[str, Any] = {f"{place}.spacing": bins.spacing}
    if bins.spacing == "uniform":
        settings |= {f"{place}.low": bins.low, f"{place}.high": bins.high}
    return settings


def _geometry_settings(config: VGGTTokenizerConfig) -> dict[str, Any]:
    """The fusion is in the names: a model that uses the tokens otherwise has other weights."""
    settings: dict[str, Any] = {f"{config.name}.more_layers": config.more_layers}
    if config.fusion not in ("tokens", "registers"):
        settings[f"{config.name}.camera of fusion {config.fusion!r}"] = config.camera
    # Which tokens are patches changes what is read, at the same shapes.
    if config.fusion in ("features", "gated", "align") or config.reduction == "pool":
        settings[f"{config.name}.num_special of fusion {config.fusion!r}"] = config.num_special
        settings[f"{config.name}.grid of fusion {config.fusion!r}"] = config.patch_grid
    return settings


def _head_settings(config: HeadConfig) -> dict[str, Any]:
    """The chunk's name has the size that a shape shows: of another size it is another head."""
    chunk = f"(head.action_horizon, head.action_dim) of {config.flat_dim} numbers"
    settings: dict[str, Any] = {
        chunk: (config.action_horizon, config.action_dim),
        "head.max_action": config.max_action,
    }
    if isinstance(config, DiffusionConfig):
        settings["head.diffusion_steps"] = config.diffusion_steps
    return settings
