"""Loads the weights of a checkpoint into a model, and reports how each tensor was used.

Nothing is skipped silently: a tensor that only the model or only the checkpoint has is an error,
unless the run lists it as expected.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from pipeline.errors import UserError
from train.octo.octo_config import OctoConfig
from train.octo.released.position_resize import SUFFIX, layout_of, resize_positions
from train.octo.released.released_config import translate
from train.octo.released.released_files import flatten, read_model_config, read_octo_checkpoint
from train.octo.released.setting_changes import find_differences
from train.octo.released.weights_report import LoadReport, LoadRow, check_expected


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The config and weights of a checkpoint, from this project or released with Octo."""

    config: OctoConfig
    """Config of the model."""
    params: dict[str, Any]
    """Weights: nested dicts of numpy arrays."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Globs over the paths of tensors that may differ from the checkpoint.

    `*` matches `/` too, as in `octo_transformer/obs_vggt_*`.
    """

    differing: Sequence[str] = ()
    """Tensors that may be new, unused or of another shape."""
    resized: Sequence[str] = ()
    """Position embeddings that are resized to the model's shape; see `resize_positions`."""


NOTHING = Allowed()
"""Every tensor must match the checkpoint."""


def account(
    target_params: Mapping[str, Any],
    checkpoint_params: Mapping[str, Any],
    allowed: Allowed = NOTHING,
) -> LoadReport:
    """Reports how every tensor would be used, before any is copied.

    A tensor is loaded if path and shape match. Every other one must be allowed.

    Args:
      target_params: Parameters of the model, or their `jax.ShapeDtypeStruct`s.
      checkpoint_params: Parameters of the checkpoint.
      allowed: The tensors that may differ.

    Raises:
      UserError: Tensors that no glob covers are new, unused or of another shape, or one that was to
        be resized cannot be. All of them are listed.
    """
    target, checkpoint = flatten(target_params), flatten(checkpoint_params)
    # The union: tensors that only one side has must show.
    paths = sorted({*target, *checkpoint})
    # From shapes alone, so a report needs no memory for the model.
    rows = tuple(_row(path, target, checkpoint, allowed.resized) for path in paths)
    check_expected(rows, allowed.differing)
    return LoadReport(rows)


def merge(
    target_params: Mapping[str, Any],
    checkpoint_params: Mapping[str, Any],
    allowed: Allowed = NOTHING,
) -> tuple[dict[str, Any], LoadReport]:
    """Copies the checkpoint's values into the model's parameters; returns them and the report.

    Args:
      target_params: Fresh parameters of the model; not modified. Their dtypes are kept.
      checkpoint_params: Parameters of the checkpoint.
      allowed: The tensors that may differ.

    Raises:
      UserError: The same as `account`.
    """
    report = account(target_params, checkpoint_params, allowed)
    target, checkpoint = flatten(target_params), flatten(checkpoint_params)
    loaded = {row.path: checkpoint[row.path] for row in report.rows if row.status == "loaded"}
    for row in report.rows:
        if row.status == "resized":
            # By the target's paths: whether a group is a grid shows in its stem.
            shape, layout = target[row.path].shape, layout_of(row.path, target)
            loaded[row.path], _ = resize_positions(checkpoint[row.path], shape, layout)
    # A checkpoint may be stored in another dtype.
    loaded = {path: jnp.asarray(leaf, target[path].dtype) for path, leaf in loaded.items()}
    # Fresh values first, so that loaded ones replace them.
    return traverse_util.unflatten_dict(target | loaded, sep="/"), report


def read_octo(directory: Path, step: int | None) -> Pretrained:
    """Loads a released checkpoint of Octo 1.0 or 1.5, with the config of its model.

    Args:
      directory: Directory with `config.json` and one folder per step. One msgpack file,
        `<step>/default/checkpoint`, holds all parameters (Orbax's "aggregate" layout of 2023).
      step: The training step; None: the last one.

    Raises:
      UserError: The directory, the step or the file is missing, or the model is not supported here.
      DataError: The file is corrupt or holds something else.
    """
    model = read_model_config(directory)
    params = read_octo_checkpoint(directory, step)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    return Pretrained(translate(model, shapes, str(directory / "config.json")), params)


def check_config(theirs: OctoConfig, ours: OctoConfig, where: str) -> None:
    """Checks settings that no shape shows: they change the model's meaning, not its weights.

    Args:
      theirs: Config of the checkpoint's model.
      ours: Config of the model that loads its weights.
      where: Name of the checkpoint, for the error message.

    Raises:
      UserError: Settings differ; all of them are listed.
    """
    differing = find_differences(ours, theirs)
    if differing:
        raise UserError(
            where=where,
            expected=", ".join(f"{name} {here}" for name, (here, _) in differing.items()),
            found=", ".join(f"{name} {there}" for name, (_, there) in differing.items()),
            remedy="Set the model config to the checkpoint's values",
        )


def _row(
    path: str, target: Mapping[str, Any], checkpoint: Mapping[str, Any], resized: Sequence[str]
) -> LoadRow:
    ours = tuple(target[path].shape) if path in target else None
    theirs = tuple(checkpoint[path].shape) if path in checkpoint else None
    if theirs is None:
        return LoadRow(path, "new", ours, theirs)
    if ours is None:
        return LoadRow(path, "unused", ours, theirs)
    # Shapes decide; names alone would load another model.
    if ours == theirs:
        return LoadRow(path, "loaded", ours, theirs)
    # Only where a glob asks for it: resizing changes values.
    if path.endswith(SUFFIX) and any(fnmatch.fnmatchcase(path, glob) for glob in resized):
        try:
            _, how = resize_positions(checkpoint[path], ours, layout_of(path, target))
        except ValueError as error:
            return LoadRow(path, "mismatched shape", ours, theirs, f"cannot be resized: {error}")
        return LoadRow(path, "resized", ours, theirs, how)
    return LoadRow(path, "mismatched shape", ours, theirs)
