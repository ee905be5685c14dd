"""Reads a released Octo checkpoint and puts its weights in place, with an account of each tensor.

Nothing is left out silently: a tensor that finds no place, and a place that finds no tensor, is an
error unless the run says that it expects it.
"""

import collections
import dataclasses
import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from flax import serialization, traverse_util

from pipeline.errors import DataError, UserError
from train.octo.config import OctoConfig

Status = Literal["loaded", "new", "unused", "mismatched shape"]
"""`new`: only the model has it; `unused`: only the checkpoint; `mismatched shape`: the model's
fresh values are kept."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadRow:
    """What became of one tensor."""

    path: str
    """Its place in the parameters, joined by `/`."""
    status: Status
    """What became of it."""
    target_shape: Shape | None
    """Its shape in the model; None: the model has no such tensor."""
    checkpoint_shape: Shape | None
    """Its shape in the checkpoint; None: the checkpoint has no such tensor."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of the model and of the checkpoint."""

    rows: tuple[LoadRow, ...]
    """A row a tensor, sorted by path."""

    def summary(self) -> str:
        """Returns one line: tensors and numbers by status."""
        tensors = collections.Counter[str](row.status for row in self.rows)
        numbers = collections.Counter[str]()
        for row in self.rows:
            numbers[row.status] += math.prod(row.target_shape or row.checkpoint_shape or ())
        return ", ".join(
            f"{count} {status} ({numbers[status]:,} numbers)" for status, count in tensors.items()
        )


def account(
    target_params: Mapping[str, Any],
    checkpoint_params: Mapping[str, Any],
    expected_new: Sequence[str] = (),
) -> LoadReport:
    """Returns what becomes of every tensor, before any is moved.

    A tensor is taken over where path and shape agree. Everything else must be expected.

    Args:
      target_params: Parameters of the model, or their `jax.ShapeDtypeStruct`s.
      checkpoint_params: From `read_octo_checkpoint`.
      expected_new: Globs over paths (`*` matches `/` too) of tensors that may be new, unused or
        of another shape: `octo_transformer/obs_vggt_*`.

    Raises:
      UserError: Tensors that no glob covers are new, unused or of another shape; it names all of
        them.
    """
    target, checkpoint = _flatten(target_params), _flatten(checkpoint_params)
    rows = tuple(_row(path, target, checkpoint) for path in sorted({*target, *checkpoint}))
    _check_expected(rows, expected_new)
    return LoadReport(rows)


def merge(
    target_params: Mapping[str, Any],
    checkpoint_params: Mapping[str, Any],
    expected_new: Sequence[str] = (),
) -> tuple[dict[str, Any], LoadReport]:
    """Returns the model's parameters with the checkpoint's values, and the account of it.

    Args:
      target_params: Fresh parameters of the model; not modified. Their dtypes are kept.
      checkpoint_params: As in `account`.
      expected_new: As in `account`.

    Raises:
      UserError: As in `account`.
    """
    report = account(target_params, checkpoint_params, expected_new)
    target, checkpoint = _flatten(target_params), _flatten(checkpoint_params)
    loaded = {
        row.path: jnp.asarray(checkpoint[row.path], dtype=target[row.path].dtype)
        for row in report.rows
        if row.status == "loaded"
    }
    return traverse_util.unflatten_dict(target | loaded, sep="/"), report


def read_octo_checkpoint(directory: Path, step: int) -> dict[str, Any]:
    """Returns the parameters of a released checkpoint, nested dicts of numpy arrays.

    Args:
      directory: Has `config.json` and a folder a step. One msgpack file,
        `<step>/default/checkpoint`, holds all parameters (Orbax's "aggregate" layout of 2023).
      step: The training step.

    Raises:
      UserError: The directory, the step or the file is missing, or the model is one of December
        2023, whose attention this code does not have.
      DataError: The file is damaged or holds something else.
    """
    if read_model_config(directory).get("use_correct_attention", False) is not True:
        raise UserError(
            where=str(directory / "config.json"),
            expected="model.use_correct_attention true",
            found="false or nothing, as in the models of December 2023",
            remedy="Take a checkpoint of version 1.5: octo-small-1.5 or octo-base-1.5",
        )
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


def check_config(directory: Path, config: OctoConfig) -> None:
    """Checks what no shape shows: settings that change the model's meaning but not its weights.

    Args:
      directory: The checkpoint.
      config: The model that is to take its weights.

    Raises:
      UserError: Settings differ; it names all of them.
    """
    model = read_model_config(directory)
    head = model.get("heads", {}).get("action", {}).get("kwargs", {})
    # Octo leaves defaults out of its config; these are the ones of its code.
    pairs = {
        "repeat_task_tokens": (config.repeat_task_tokens, model.get("repeat_task_tokens", False)),
        "head.diffusion_steps": (config.head.diffusion_steps, head.get("diffusion_steps", 20)),
        "head.max_action": (config.head.max_action, head.get("max_action", 5.0)),
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        raise UserError(
            where=str(directory / "config.json"),
            expected=", ".join(f"{name} {ours}" for name, (ours, _) in differing.items()),
            found=", ".join(f"{name} {theirs}" for name, (_, theirs) in differing.items()),
            remedy="Set the model config to the checkpoint's values",
        )


def _find_step(directory: Path, step: int) -> Path:
    path = directory / str(step)
    if not path.is_dir():
        steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())
        raise UserError(
            where=str(directory),
            expected=f"step {step}",
            found=f"the steps {steps}" if steps else "no step at all",
            remedy="Set pretrained_step to one that is there",
        )
    return path


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
            remedy="Give an Octo checkpoint with a diffusion head",
        )
    return params


def _flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def _row(path: str, target: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> LoadRow:
    ours = tuple(target[path].shape) if path in target else None
    theirs = tuple(checkpoint[path].shape) if path in checkpoint else None
    status: Status
    if theirs is None:
        status = "new"
    elif ours is None:
        status = "unused"
    else:
        status = "loaded" if ours == theirs else "mismatched shape"
    return LoadRow(path, status, ours, theirs)


def _check_expected(rows: Sequence[LoadRow], expected: Sequence[str]) -> None:
    surprises = [
        row
        for row in rows
        if row.status != "loaded"
        and not any(fnmatch.fnmatchcase(row.path, glob) for glob in expected)
    ]
    if surprises:
        target = {row.path: row.target_shape for row in rows}
        checkpoint = {row.path: row.checkpoint_shape for row in rows}
        lines = [
            f"\n  {row.path}: {row.status}, {row.target_shape} here, "
            f"{row.checkpoint_shape} in the checkpoint{_cause(row, target, checkpoint)}"
            for row in surprises
        ]
        raise UserError(
            where="pretrained weights",
            expected=f"every tensor loaded, but for {list(expected) or 'none'}",
            found=f"{len(surprises)} others:{''.join(lines)}\n",
            remedy="Fit the model config to the checkpoint, or list what may differ as globs",
        )


def _cause(
    row: LoadRow, target: Mapping[str, Shape | None], checkpoint: Mapping[str, Shape | None]
) -> str:
    """Says in words what a mismatch most likely comes from; nothing where it is plain."""
    ours, theirs = row.target_shape, row.checkpoint_shape
    if ours is None or theirs is None or len(ours) != len(theirs):
        return ""
    if row.path.endswith("_pos_embedding"):
        return _position_cause(ours, theirs)
    head = "heads_action/diffusion_model/reverse_network/"
    here, there = (shapes.get(f"{head}Dense_1/bias") for shapes in (target, checkpoint))
    if row.path.startswith(f"{head}Dense_") and here and there and here != there:
        inputs = f": {ours[0]} against {theirs[0]} inputs" if ours[0] != theirs[0] else ""
        return (
            f" (action_horizon or action_dim differs: their product is {here[0]} here, "
            f"the checkpoint has {there[0]}{inputs})"
        )
    return ""


def _position_cause(ours: Shape, theirs: Shape) -> str:
    """Says which axis of `(1 steps tokens d)` or `(1 tokens d)` differs."""
    if ours[-1] != theirs[-1]:
        return f" (embedding_dim is {ours[-1]}, the checkpoint has {theirs[-1]})"
    if ours[-2] != theirs[-2]:
        return (
            f" ({ours[-2]} tokens, the checkpoint has {theirs[-2]}: "
            "another image_size, num_tokens or max_length)"
        )
    return f" (max_horizon is {ours[1]}, the checkpoint has {theirs[1]})"
