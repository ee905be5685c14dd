"""Reads the files of a released Octo checkpoint: its config and the parameters of each step.

config.json                 its part `model` describes the model
<step>/default/checkpoint   one msgpack file with all parameters: Orbax's layout of 2023
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from pipeline.errors import DataError, UserError
from pipeline.files import UNPARSABLE

_CONFIG = "config.json"
_PARTS = {"octo_transformer", "heads_action"}
# Orbax's later layout, many small files, which msgpack cannot read.
_NEWER_LAYOUT = "manifest.ocdbt"
_NUM_NAMED = 3


def read_model_config(directory: Path) -> dict[str, Any]:
    """Returns the part `model` of the checkpoint's `config.json`.

    Raises:
      UserError: There is no such file, or it is not Octo's.
      DataError: It cannot be read.
    """
    path = directory / _CONFIG
    if not path.is_file():
        found = "no such file" if directory.is_dir() else "no such directory"
        raise UserError(
            where=str(path),
            expected=f"Octo's {_CONFIG}",
            found=found,
            remedy=_right_directory(directory),
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *UNPARSABLE) as error:
        raise DataError(
            where=str(path), expected="JSON", found=str(error), remedy="Download it again"
        ) from error
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise UserError(
            where=str(path),
            expected="the key 'model'",
            found="none",
            remedy=_right_directory(directory),
        )
    return model


def read_octo_checkpoint(directory: Path, step: int | None) -> dict[str, Any]:
    """Returns the parameters of a released checkpoint, nested dicts of numpy arrays.

    Args:
      directory: The directory of the checkpoint, with `config.json` and one folder per step.
      step: The training step; None: the last one.

    Raises:
      UserError: The step is missing, or its files have another layout.
      DataError: The file is missing, corrupt or holds something else.
    """
    path = _find_step(directory, step) / "default" / "checkpoint"
    # Named as what it is: otherwise the file below would just be missing.
    if (path.parent / _NEWER_LAYOUT).exists():
        raise UserError(
            where=str(path.parent),
            expected=f"one msgpack file, {path.name}, with all parameters",
            found=f"another layout, that of newer releases of Orbax ({_NEWER_LAYOUT})",
            remedy=f"Restore it with Orbax, and write {path.name} with "
            "flax.serialization.msgpack_serialize(params) into a copy of the checkpoint",
        )
    if not path.is_file():
        raise DataError(
            where=str(path),
            expected="the msgpack file with all parameters",
            found="no such file",
            remedy="Download the whole checkpoint again",
        )
    params = _restore(path)
    # Before a run computes its first loss of NaN.
    check_tensors(params, str(path))
    return params


def check_tensors(params: Mapping[str, Any], where: str) -> None:
    """Checks that all leaves are arrays of finite floats.

    params: Nested dicts of arrays.
      where: Name of the checkpoint, for the error message.
      where: The checkpoint, for the error.

    Raises:
      DataError: Some are not; the error counts them and lists the first.
    """
    flat = flatten(params)
    defects = {path: defect for path, leaf in flat.items() if (defect := _defect(leaf))}
    if defects:
        named = [f"{path}: {defect}" for path, defect in list(defects.items())[:_NUM_NAMED]]
        raise DataError(
            where=where,
            expected=f"{len(flat)} tensors of finite floats",
            found=f"{len(defects)} others, such as {'; '.join(named)}",
            remedy="Use another checkpoint, or another step of it",
        )


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of nested dicts by their `/`-joined paths."""
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def _defect(leaf: Any) -> str:
    if not isinstance(leaf, np.ndarray):
        return f"not an array but a {type(leaf).__name__}"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"of {leaf.dtype}"
    return "" if np.isfinite(leaf).all() else "has values that are NaN or infinite"


def _right_directory(directory: Path) -> str:
    """Returns the remedy for a directory without a checkpoint: the path that was likely meant."""
    # The hub's cache has folders named models--owner--name.
    for part in directory.absolute().parts:
        kind, *repository = part.split("--")
        if kind == "models" and len(repository) == 2:
            return f"For the hub's cache write hf://{'/'.join(repository)}"
    for folder in (directory, directory.parent):
        if folder.name.isdecimal() and (folder.parent / _CONFIG).is_file():
            return f"Give {folder.parent}, with pretrained_step {int(folder.name)}"
    return f"Give the directory of an Octo checkpoint, the one that holds {_CONFIG}"


def _find_step(directory: Path, step: int | None) -> Path:
    folders = directory.iterdir() if directory.is_dir() else ()
    # Other folders beside the steps are no steps.
    steps = {int(path.name): path for path in folders if path.name.isdecimal() and path.is_dir()}
    wanted = max(steps, default=None) if step is None else step
    if wanted not in steps:
        raise UserError(
            where=str(directory),
            expected="a training step" if step is None else f"step {step}",
            found=f"the steps {sorted(steps)}" if steps else "no step at all",
            remedy="Set pretrained_step to one that exists",
        )
    return steps[wanted]


def _restore(path: Path) -> dict[str, Any]:
    try:
        params = serialization.msgpack_restore(path.read_bytes())
    except (ValueError, TypeError) as error:
        raise DataError(
            where=str(path),
            expected="a whole msgpack file",
            found=f"{path.stat().st_size} bytes that end early or are corrupt ({error})",
            remedy="Download it again",
        ) from error
    except OSError as error:
        raise DataError(
            where=str(path),
            expected="a file that can be read",
            found=str(error),
            remedy="Fix its permissions, or download it again",
        ) from error
    if not isinstance(params, dict) or not params.keys() >= _PARTS:
        found = ", ".join(map(str, params)) if isinstance(params, dict) else type(params).__name__
        raise DataError(
            where=str(path),
            expected=f"parameters with the keys {sorted(_PARTS)}",
            found=found or "nothing",
            remedy="Give an Octo checkpoint",
        )
    return params
