"""Opens the datasets of a config, or one directory, as a loader."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from pipeline.arguments import check_path, named_arguments
from pipeline.data.dataset import locate, open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError
from pipeline.hub.hub_address import is_dataset_address, without_revision
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.text import load_vocabulary
from pipeline.sharing.cached_dataset import pin_address


@named_arguments(
    "Other settings are fields of DataConfig, such as its seed: give one instead of the directory."
)
def open_loader(
    data: str | os.PathLike[str] | DataConfig,
    batch_size: int,
    *,
    observations: Sequence[str] | None = None,
    window_size: int | None = None,
    action_horizon: int | None = None,
) -> Loader:
    """Opens datasets and returns a loader of their batches, for a training loop of one's own.

    Args:
      data: A dataset directory, or `hf://datasets/owner/name[@revision]`, of which all episodes
        are sampled; or a config, for mixtures, splits, filters, goals and token ids of
        instructions.
      batch_size: Samples of a batch.
      observations: Features below `observation/` that a batch holds; None: the config's, or of a
        directory all of them.
      window_size: Steps of history, the current one included; None: the config's, or 1.
      action_horizon: Actions of a chunk; None: the config's, or 1.

    Raises:
      UserError: There is no such dataset, or its features or settings do not fit each other.
    """
    if isinstance(observations, str):
        raise UserError(
            where="open_loader, observations",
            expected="a list of names",
            found=repr(observations),
            remedy=f"Put it in a list: observations=[{observations!r}].",
        )
    changes: dict[str, Any] = {}
    if isinstance(data, str | os.PathLike):
        wanted = None if observations is None else [f"observation/{n}" for n in observations]
        data, directory = locate(os.fspath(data), wanted)
        features = load_manifest(directory).schema.features()
        keys = [feature.key for _, feature in features if feature.kind != "text"]
        names = [k.removeprefix("observation/") for k in keys if k.startswith("observation/")]
        # Every observation that the dataset has, without a vocabulary to be installed.
        config = DataConfig((DatasetConfig(data),), vocabulary="", observations=tuple(names))
        changes = {"split": "all", "window_size": 1, "action_horizon": 1}
    else:
        if not isinstance(data, DataConfig):
            check_path(data, "open_loader, data", "a dataset directory, or a DataConfig")
        config = data
    if observations is not None:
        changes["observations"] = tuple(observations)
    if window_size is not None:
        changes["window_size"] = window_size
    if action_horizon is not None:
        changes["action_horizon"] = action_horizon
    config = dataclasses.replace(config, **changes)
    check_all_there(config.datasets)
    config = dataclasses.replace(config, datasets=pinned_parts(config.datasets))
    opened = [open_dataset(part.path, config.keys_of(part)) for part in config.datasets]
    encode = load_vocabulary(config.vocabulary).EncodeAsIds if config.vocabulary else None
    return Loader(config, batch_size, opened, encode)


def pinned_parts(
    parts: Sequence[DatasetConfig], before: Sequence[DatasetConfig] = ()
) -> tuple[DatasetConfig, ...]:
    """Returns datasets of a mixture, those on the hub with the commits of their addresses.

    Args:
      parts: The datasets of the config.
      before: Those of the run that is resumed, whose commits are used again.

    Raises:
      DataError: An address is malformed, or the hub refuses or is not reached.
    """
    return tuple(
        dataclasses.replace(part, path=pin_address(part.path, _used(number, part, before)))
        if is_dataset_address(part.path)
        else part
        for number, part in enumerate(parts)
    )


def _used(number: int, part: DatasetConfig, before: Sequence[DatasetConfig]) -> str | None:
    """The address, with its commit, that a resumed run has used for a dataset; None: none."""
    of_repository = {
        place: one.path
        for place, one in enumerate(before)
        if without_revision(one.path) == without_revision(part.path)
    }
    # By place: a mixture may have two commits of one repository.
    if number in of_repository:
        return of_repository[number]
    return next(iter(of_repository.values()), None) if len({*of_repository.values()}) == 1 else None


def check_all_there(parts: Sequence[DatasetConfig]) -> None:
    """Checks that the directories of datasets which can be got by commands are there.

    Raises:
      UserError: Some are missing; it lists all of them on one line, then their commands.
    """
    missing = missing_parts(parts)
    if not missing:
        return
    lines = [f"      {line}" for part in missing for line in part.commands]
    remedy = "\n".join(["Get it with:" if len(missing) == 1 else "Get them with:", *lines])
    if len(missing) == 1:
        raise UserError(
            where=missing[0].path, expected="a dataset directory", found="none", remedy=remedy
        )
    raise UserError(
        where="data.datasets",
        expected=f"{len(parts)} dataset directories",
        found=f"{len(parts) - len(missing)}, without {', '.join(part.path for part in missing)}",
        remedy=remedy,
    )


def missing_parts(parts: Sequence[DatasetConfig]) -> list[DatasetConfig]:
    """Returns the datasets with commands whose directories are missing."""
    here = [part for part in parts if part.commands and not is_dataset_address(part.path)]
    return [part for part in here if not epath.Path(part.path).exists()]
