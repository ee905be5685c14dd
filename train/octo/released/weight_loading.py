"""Loads the weights of a checkpoint into a model, and reports how each tensor was used.

Nothing is skipped silently: a tensor that only the model or only the checkpoint has is an error,
unless the run lists it as expected.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util

from pipeline.errors import UserError
from train.octo.octo_config import OctoConfig
from train.octo.released.config_differences import find_changed_meanings, find_differences
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

Layout = Literal["grid", "sequence", "fixed"]
"""What a different number of tokens means for a group. `grid`: another image size, so they are
interpolated; `sequence`: a shorter text, so the first ones are kept; `fixed`: other elements of a
vector or other geometry, so they cannot be resized."""

_POSITIONS = "_pos_embedding"
"""Suffix of the paths of position embeddings."""


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
    return layout_of(path, config) if is_asked and path.endswith(_POSITIONS) else None


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of nested dicts by their `/`-joined paths."""
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def layout_of(path: str, config: OctoConfig) -> Layout:
    """Returns how the tokens of a position embedding are laid out in a model."""
    group = path.removeprefix("octo_transformer/").removesuffix(_POSITIONS)
    if group == "task_language":
        return "sequence"
    return "grid" if group in [f"obs_{image.name}" for image in config.images] else "fixed"


def resize_positions(values: Any, shape: tuple[int, ...], layout: Layout) -> tuple[jax.Array, str]:
    """Resizes position embeddings to another shape; returns them and a description.

    Steps at the end of the window are dropped.

    Args:
      values: Position embeddings, `(1 steps tokens d)` or `(1 tokens d)`.
      shape: The target shape.
      layout: The layout of the tokens.

    Raises:
      ValueError: There are too few steps or tokens, the tokens cannot be resized, or other axes
        differ.
    """
    array = jnp.asarray(values)
    how = []
    # Another embedding size is another model.
    if len(shape) != array.ndim or shape[0] != array.shape[0] or shape[-1] != array.shape[-1]:
        raise ValueError(f"{array.shape} and {shape} differ in more than steps and tokens")
    # Steps first: each step's tokens are then resized alike.
    if array.ndim == 4 and shape[1] != array.shape[1]:
        array, cut = _first(array, shape[1], axis=1, unit="steps")
        how.append(cut)
    trained, wanted = array.shape[-2], shape[-2]
    if wanted != trained:
        match layout:
            case "grid":
                array, fitted = _interpolate(array, wanted)
            case "sequence":
                array, fitted = _first(array, wanted, axis=-2, unit="tokens")
            case "fixed":
                raise ValueError(
                    f"{wanted} tokens are wanted, {trained} were trained, and only those of a "
                    "camera or an instruction can be fitted"
                )
        how.append(fitted)
    return array, ", ".join(how)


def _first(array: jax.Array, count: int, axis: int, unit: str) -> tuple[jax.Array, str]:
    trained = array.shape[axis]
    if count > trained:
        raise ValueError(f"{count} {unit} are wanted, {trained} were trained")
    kept = jax.lax.slice_in_dim(array, 0, count, axis=axis)
    return kept, f"the first {count} of {trained} {unit}"


def _interpolate(array: jax.Array, count: int) -> tuple[jax.Array, str]:
    """Interpolates a square grid bilinearly, with antialiasing when it shrinks."""
    *steps, trained, d = array.shape
    before, after = math.isqrt(trained), math.isqrt(count)
    if before**2 != trained or after**2 != count:
        raise ValueError(f"{trained} and {count} tokens are not square grids")
    grid = array.reshape(*steps, before, before, d)
    # The leading axes have the same sizes, and are not interpolated.
    resized = jax.image.resize(grid, (*steps, after, after, d), "bilinear", antialias=True)
    how = f"{before}x{before} tokens to {after}x{after}, bilinear"
    return resized.reshape(*steps, count, d), how
