"""Loads the weights of a checkpoint into a model, and reports how each tensor was used.

Nothing is skipped silently: a tensor that only the model or only the checkpoint has is an error,
unless the run lists it as expected.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import traverse_util

from pipeline.errors import UserError
from train.octo.octo_config import OctoConfig
from train.octo.released.config_differences import find_changed_meanings, find_differences
from train.octo.released.position_resize import SUFFIX, Layout, layout_of, resize_positions
from train.octo.released.weights_report import LoadReport, LoadRow, check_expected


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The config and weights of a checkpoint, from this project or released with Octo."""

    config: OctoConfig
    """Config of the model."""
    params: dict[str, Any]
    """Weights: nested dicts of numpy arrays."""


@runtime_checkable
class WeightSource(Protocol):
    """A checkpoint that a model's weights are loaded from."""

    def load(self) -> Pretrained:
        """Returns its weights, on the host, with the config of their model.

        Raises:
          UserError: It does not exist, or its model is not supported here.
          DataError: It is corrupt, or cannot be fetched.
        """
        ...


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


def check_config(theirs: OctoConfig, ours: OctoConfig, where: str) -> None:
    """Checks settings that no shape shows: they change the model's meaning, not its weights.

    Args:
      theirs: Config of the checkpoint's model.
      ours: Config of the model that loads its weights.
      where: Name of the checkpoint, for the error message.

    Raises:
      UserError: Settings differ; all of them are listed.
    """
    differing = find_changed_meanings(ours, theirs)
    if differing:
        raise UserError(
            where=where,
            expected=", ".join(f"{name} {here}" for name, (here, _) in differing.items()),
            found=", ".join(f"{name} {there}" for name, (_, there) in differing.items()),
            remedy="Set the model config to the checkpoint's values",
        )


def account(
    config: OctoConfig,
    target_params: Mapping[str, Any],
    checkpoint: Pretrained,
    allowed: Allowed = NOTHING,
) -> LoadReport:
    """Reports how every tensor would be used, before any is copied.

    A tensor is loaded if path and shape match. Every other one must be allowed.

    Args:
      config: Config of the model.
      target_params: Parameters of the model, or their `jax.ShapeDtypeStruct`s.
      checkpoint: The checkpoint.
      allowed: The tensors that may differ.

    Raises:
      UserError: Tensors that no glob covers are new, unused or of another shape, or one that was to
        be resized cannot be. All of them are listed.
    """
    target, theirs = flatten(target_params), flatten(checkpoint.params)
    # The union: tensors that only one side has must show. From shapes alone, so a report needs no
    # memory for the model.
    rows = tuple(
        _row(path, target.get(path), theirs.get(path), _layout(path, config, allowed))
        for path in sorted({*target, *theirs})
    )
    check_expected(rows, allowed.differing, find_differences(config, checkpoint.config))
    return LoadReport(rows)


def merge(
    config: OctoConfig,
    target_params: Mapping[str, Any],
    checkpoint: Pretrained,
    allowed: Allowed = NOTHING,
) -> tuple[dict[str, Any], LoadReport]:
    """Copies the checkpoint's values into the model's parameters; returns them and the report.

    Arguments and errors are those of `account`, but the parameters are arrays. They are not
    modified, and their dtypes are kept.
    """
    report = account(config, target_params, checkpoint, allowed)
    target, theirs = flatten(target_params), flatten(checkpoint.params)
    params = dict(target)
    for row in report.rows:
        if row.status in ("loaded", "resized"):
            values, fresh = theirs[row.path], target[row.path]
            if row.status == "resized":
                values, _ = resize_positions(values, fresh.shape, layout_of(row.path, config))
            # A checkpoint may be stored in another dtype.
            params[row.path] = jnp.asarray(values, fresh.dtype)
    return traverse_util.unflatten_dict(params, sep="/"), report


def _row(path: str, ours: Any, theirs: Any, layout: Layout | None) -> LoadRow:
    here, there = (None if leaf is None else tuple(leaf.shape) for leaf in (ours, theirs))
    if there is None:
        return LoadRow(path, "new", here, there)
    if here is None:
        return LoadRow(path, "unused", here, there)
    # Shapes decide; names alone would load another model.
    if here == there:
        return LoadRow(path, "loaded", here, there)
    if layout is None:
        return LoadRow(path, "mismatched shape", here, there)
    try:
        _, how = resize_positions(theirs, here, layout)
    except ValueError as error:
        return LoadRow(path, "mismatched shape", here, there, f"cannot be resized: {error}")
    return LoadRow(path, "resized", here, there, how)


def _layout(path: str, config: OctoConfig, allowed: Allowed) -> Layout | None:
    """Returns how a tensor is resized; None: it must not be, because resizing changes values."""
    is_asked = any(fnmatch.fnmatchcase(path, glob) for glob in allowed.resized)
    return layout_of(path, config) if is_asked and path.endswith(SUFFIX) else None


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of nested dicts by their `/`-joined paths."""
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))
