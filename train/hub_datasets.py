"""Datasets of a run that are on the hub: the commits that it uses, and what it has to fetch."""

import dataclasses
import pathlib
from collections.abc import Iterator

from pipeline.hub.hub_address import is_dataset_address
from pipeline.loading.loader_opening import pinned_parts
from pipeline.sharing.cached_dataset import is_cached, plan_fetch
from pipeline.sharing.pull_plan import PullPlan
from train.checkpoints.run_directory import read_config
from train.flags import Flags
from train.train_config import TrainConfig


def pin_datasets(flags: Flags) -> Flags:
    """Returns the flags with the commits of the datasets on the hub, which the run records.

    A run that is resumed gets the commits that it began with, also without a network.

    Raises:
      UserError: An address is malformed, or the hub refuses or is not reached.
    """
    config = flags.config
    if not any(is_dataset_address(part.path) for part in config.data.datasets):
        return flags
    before = read_config(pathlib.Path(config.save_dir)) if flags.resume else None
    pinned = pinned_parts(config.data.datasets, before.data.datasets if before else ())
    paths = {part.path: new.path for part, new in zip(config.data.datasets, pinned, strict=True)}
    # In the file's config too: a commit is no setting that a flag made.
    unchanged = flags.unchanged and _with_paths(flags.unchanged, paths)
    return dataclasses.replace(flags, config=_with_paths(config, paths), unchanged=unchanged)


def to_fetch(config: TrainConfig) -> Iterator[PullPlan]:
    """Yields what the run would fetch of each dataset on the hub before it starts.

    Args:
      config: The config of the run, with the commits of its datasets.

    Raises:
      UserError: The hub lacks a feature or a file, refuses or is not reached.
    """
    for part in config.data.datasets:
        keys = config.data.keys_of(part)
        if is_dataset_address(part.path) and not is_cached(part.path, keys):
            yield plan_fetch(part.path, keys)


def _with_paths(config: TrainConfig, paths: dict[str, str]) -> TrainConfig:
    """Returns a config whose datasets have other paths."""
    datasets = tuple(
        dataclasses.replace(part, path=paths.get(part.path, part.path))
        for part in config.data.datasets
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=datasets))
