"""Reads a released Octo checkpoint and puts its weights in place, with an account of each tensor.

Nothing is left out silently: a tensor that finds no place, and a place that finds no tensor, is an
error unless the run says that it expects it.
"""

import dataclasses
import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization, traverse_util

from pipeline.errors import DataError, UserError
from train.octo.config import DiffusionConfig, OctoConfig
from train.octo.report import LoadReport, LoadRow, Shape, check_expected
from train.octo.translate import translate


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A released checkpoint."""

    config: OctoConfig
    """Of its model."""
    params: dict[str, Any]
    """Nested dicts of numpy arrays."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Which tensors need not come from the checkpoint as they are: globs over paths.

    `*` matches `/` too, as in `octo_transformer/obs_vggt_*`.
    """

    differing: Sequence[str] = ()
    """May be new, unused or of another shape."""
    resized: Sequence[str] = ()
    """Position embeddings that are fitted to the model's shape."""


NOTHING = Allowed()
"""Every tensor must come from the checkpoint as it is."""


def account(
    target_params: Mapping[str, Any],
    checkpoint_params: Mapping[str, Any],
    allowed: Allowed = NOTHING,
) -> LoadReport:
    """Returns what becomes of every tensor, before any is moved.

    A tensor is taken over where path and shape agree. Everything else must be allowed.

    Args:
      target_params: Parameters of the model, or their `jax.ShapeDtypeStruct`s.
      checkpoint_params: Of a checkpoint.
      allowed: What may be otherwise.

    Raises:
      UserError: Tensors that no glob covers are new, unused or of another shape, or one that was
        to be resized cannot be; it names all of them.
    """
    target, checkpoint = _flatten(target_params), _flatten(checkpoint_params)
    paths = sorted({*target, *checkpoint})
    rows = tuple(_row(path, target, checkpoint, allowed.resized) for path in paths)
    check_expected(rows, allowed.differing)
    return LoadReport(rows)


def merge(
    target_params: Mapping[str, Any],
    checkpoint_params: Mapping[str, Any],
    allowed: Allowed = NOTHING,
) -> tuple[dict[str, Any], LoadReport]:
    """Returns the model's parameters with the checkpoint's values, and the account of it.

    Args:
      target_params: Fresh parameters of the model; not modified. Their dtypes are kept.
      checkpoint_params: As in `account`.
      allowed: As in `account`.

    Raises:
      UserError: As in `account`.
    """
    report = account(target_params, checkpoint_params, allowed)
    target, checkpoint = _flatten(target_params), _flatten(checkpoint_params)
    loaded = {
        row.path: jnp.asarray(_fit(row, checkpoint), dtype=target[row.path].dtype)
        for row in report.rows
        if row.status in ("loaded", "resized")
    }
    return traverse_util.unflatten_dict(target | loaded, sep="/"), report


def read_octo(directory: Path, step: int | None) -> Pretrained:
    """Returns a released checkpoint with the config of its model, of Octo 1.0 or 1.5.

    Args:
      directory: Has `config.json` and a folder a step. One msgpack file,
        `<step>/default/checkpoint`, holds all parameters (Orbax's "aggregate" layout of 2023).
      step: The training step; None: the last one.

    Raises:
      UserError: The directory, the step or the file is missing, or the model is one that this code
        has no counterpart for.
      DataError: The file is damaged or holds something else.
    """
    model = read_model_config(directory)
    params = read_octo_checkpoint(directory, step)
    shapes = {path: tuple(leaf.shape) for path, leaf in _flatten(params).items()}
    return Pretrained(translate(model, shapes, str(directory / "config.json")), params)


def read_octo_checkpoint(directory: Path, step: int | None) -> dict[str, Any]:
    """Returns the parameters of a released checkpoint, nested dicts of numpy arrays.

    Args:
      directory: As in `read_octo`.
      step: As in `read_octo`.

    Raises:
      UserError: The directory or the step is missing.
      DataError: The file is missing, damaged or holds something else.
    """
    read_model_config(directory)
    path = _find_step(directory, step) / "default" / "checkpoint"
    if not path.is_file():
        raise DataError(
            where=str(path),
            expected="the msgpack file with all parameters",
            found="no such file",
            remedy="Download the whole checkpoint again",
        )
    return _restore(path)


def read_model_config(directory: Path) -> dict[str, Any]:
    """Returns the part `model` of the checkpoint's `config.json`.

    Raises:
      UserError: There is no such file, or it is not Octo's.
    """
    path = directory / "config.json"
    remedy = "Give the directory of an Octo checkpoint, the one that holds config.json"
    if not path.is_file():
        found = "no such file" if directory.is_dir() else "no such directory"
        raise UserError(where=str(path), expected="Octo's config.json", found=found, remedy=remedy)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            where=str(path), expected="JSON", found=str(error), remedy="Download it again"
        ) from error
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise UserError(where=str(path), expected="the key 'model'", found="none", remedy=remedy)
    return model


def check_config(theirs: OctoConfig, ours: OctoConfig, where: str) -> None:
    """Checks what no shape shows: settings that change the model's meaning but not its weights.

    Args:
      theirs: Of the checkpoint.
      ours: Of the model that is to take its weights.
      where: The checkpoint, for the error.

    Raises:
      UserError: Settings differ; it names all of them.
    """
    names = ["repeat_task_tokens", "legacy_attention"]
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    if isinstance(ours.head, DiffusionConfig) and isinstance(theirs.head, DiffusionConfig):
        steps = (ours.head.diffusion_steps, theirs.head.diffusion_steps)
        pairs["head.diffusion_steps"] = steps
    if type(ours.head) is type(theirs.head):
        pairs["head.max_action"] = (ours.head.max_action, theirs.head.max_action)
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        raise UserError(
            where=where,
            expected=", ".join(f"{name} {mine}" for name, (mine, _) in differing.items()),
            found=", ".join(f"{name} {other}" for name, (_, other) in differing.items()),
            remedy="Set the model config to the checkpoint's values",
        )


def resize_positions(values: Any, shape: Shape) -> tuple[jax.Array, str]:
    """Returns position embeddings of another shape, and how they were made.

    Steps of the window are cut off at its end; a square grid of tokens is interpolated bilinearly,
    antialiased where it shrinks.

    Args:
      values: `(1 steps tokens d)` or `(1 tokens d)`.
      shape: The wanted one.

    Raises:
      ValueError: Too few steps, tokens that are no square grids, or another difference.
    """
    array = jnp.asarray(values)
    how = []
    if len(shape) != array.ndim or shape[0] != array.shape[0] or shape[-1] != array.shape[-1]:
        raise ValueError(f"{array.shape} and {shape} differ in more than steps and tokens")
    if array.ndim == 4 and shape[1] != array.shape[1]:
        if shape[1] > array.shape[1]:
            raise ValueError(f"{shape[1]} steps are wanted, {array.shape[1]} were trained")
        how.append(f"the first {shape[1]} of {array.shape[1]} steps")
        array = array[:, : shape[1]]
    if shape[-2] != array.shape[-2]:
        sides = [math.isqrt(count) for count in (array.shape[-2], shape[-2])]
        if sides[0] ** 2 != array.shape[-2] or sides[1] ** 2 != shape[-2]:
            raise ValueError(f"{array.shape[-2]} and {shape[-2]} tokens are no square grids")
        grid = array.reshape(*array.shape[:-2], sides[0], sides[0], array.shape[-1])
        wanted = (*grid.shape[:-3], sides[1], sides[1], grid.shape[-1])
        array = jax.image.resize(grid, wanted, "bilinear", antialias=True).reshape(shape)
        how.append(f"{sides[0]}x{sides[0]} tokens to {sides[1]}x{sides[1]}, bilinear")
    return array, ", ".join(how)


def _find_step(directory: Path, step: int | None) -> Path:
    steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    if not steps or (step is not None and step not in steps):
        raise UserError(
            where=str(directory),
            expected="a training step" if step is None else f"step {step}",
            found=f"the steps {steps}" if steps else "no step at all",
            remedy="Set pretrained_step to one that is there",
        )
    return directory / str(steps[-1] if step is None else step)


def _restore(path: Path) -> dict[str, Any]:
    remedy = "Download it again"
    try:
        params = serialization.msgpack_restore(path.read_bytes())
    except (ValueError, TypeError) as error:
        raise DataError(
            where=str(path),
            expected="a whole msgpack file",
            found=f"{path.stat().st_size} bytes that end early or are damaged ({error})",
            remedy=remedy,
        ) from error
    parts = {"octo_transformer", "heads_action"}
    if not isinstance(params, dict) or not parts <= params.keys():
        found = ", ".join(map(str, params)) if isinstance(params, dict) else type(params).__name__
        raise DataError(
            where=str(path),
            expected=f"parameters with the keys {sorted(parts)}",
            found=found or "nothing",
            remedy="Give an Octo checkpoint",
        )
    return params


def _flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def _fit(row: LoadRow, checkpoint: Mapping[str, Any]) -> Any:
    if row.status == "resized" and row.target_shape is not None:
        return resize_positions(checkpoint[row.path], row.target_shape)[0]
    return checkpoint[row.path]


def _row(
    path: str, target: Mapping[str, Any], checkpoint: Mapping[str, Any], resized: Sequence[str]
) -> LoadRow:
    ours = tuple(target[path].shape) if path in target else None
    theirs = tuple(checkpoint[path].shape) if path in checkpoint else None
    if theirs is None:
        return LoadRow(path, "new", ours, theirs)
    if ours is None:
        return LoadRow(path, "unused", ours, theirs)
    if ours == theirs:
        return LoadRow(path, "loaded", ours, theirs)
    if path.endswith("_pos_embedding") and any(fnmatch.fnmatchcase(path, g) for g in resized):
        try:
            _, how = resize_positions(checkpoint[path], ours)
        except ValueError as error:
            return LoadRow(path, "mismatched shape", ours, theirs, f"cannot be resized: {error}")
        return LoadRow(path, "resized", ours, theirs, how)
    return LoadRow(path, "mismatched shape", ours, theirs)
