"""Reads a released Octo checkpoint, from a directory or the hub.

config.json                 its part `model` describes the model
<step>/default/checkpoint   one msgpack file with all parameters: Orbax's layout of 2023
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization

from pipeline.errors import DataError, UserError
from pipeline.files import parse_json, read_text
from pipeline.hub.hub_address import SCHEME
from pipeline.hub.hub_files import fetch_directory
from train.octo.released.released_config import translate
from train.octo.released.weight_loading import Pretrained, flatten

_CONFIG = "config.json"
_PARTS = {"octo_transformer", "heads_action"}
# Orbax's later layout, many small files, which msgpack cannot read.
_NEWER_LAYOUT = "manifest.ocdbt"
_NUM_NAMED = 3


@dataclasses.dataclass(frozen=True)
class OctoCheckpoint:
    """A checkpoint of Octo 1.0 or 1.5, as a source of weights."""

    path: str
    """Directory with `config.json` and one folder per step, or `hf://owner/name`."""
    step: int | None = None
    """Training step; None: the last one, only for a directory."""

    def load(self) -> Pretrained:
        """Returns the parameters and the config of their model.

        Raises:
          UserError: The directory, the step or a file is missing, a step on the hub is not named,
            or the model is not supported here.
          DataError: A file is corrupt, holds something else, has values that are not finite or
            cannot be fetched.
        """
        directory = self._fetch()
        config = directory / _CONFIG
        model = _read_model(config)
        file = self._find_step(directory) / "default" / "checkpoint"
        params = _read_params(file)
        # Before a run computes its first loss of NaN.
        check_tensors(params, str(file))
        shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
        return Pretrained(translate(model, shapes, str(config)), params)

    def _fetch(self) -> Path:
        if self.step is None and self.path.startswith(SCHEME):
            raise UserError(
                where=self.path,
                expected="the training step of a checkpoint on the hub",
                found="none",
                remedy="Give it, such as pretrained_step 300000 for octo-small-1.5.",
            )
        return fetch_directory(self.path, [_CONFIG, f"{self.step}/default/checkpoint"])

    def _find_step(self, directory: Path) -> Path:
        # Other folders beside the steps are no steps.
        folders = [path for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
        steps = {int(path.name): path for path in folders}
        wanted = max(steps, default=None) if self.step is None else self.step
        if wanted not in steps:
            raise UserError(
                where=str(directory),
                expected="a training step" if self.step is None else f"step {self.step}",
                found=f"the steps {sorted(steps)}" if steps else "no step at all",
                remedy="Set pretrained_step to one that exists",
            )
        return steps[wanted]


def check_tensors(params: Mapping[str, Any], where: str) -> None:
    """Checks that all leaves are arrays of finite floats.

    Args:
      params: Nested dicts of arrays.
      where: Name of the checkpoint, for the error message.

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


def _defect(leaf: Any) -> str:
    if not isinstance(leaf, np.ndarray):
        return f"not an array but a {type(leaf).__name__}"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"of {leaf.dtype}"
    return "" if np.isfinite(leaf).all() else "has values that are NaN or infinite"


def _read_model(path: Path) -> dict[str, Any]:
    """Returns the part `model` of a `config.json`."""
    about = {"expected": f"Octo's {_CONFIG}, with the key 'model'", "remedy": _remedy(path.parent)}
    config = parse_json(read_text(path, **about), where=str(path), **about)
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise UserError(where=str(path), found="another JSON value", **about)
    return model


def _remedy(directory: Path) -> str:
    """Returns what to do if a directory has no checkpoint: give the path that was likely meant."""
    # The hub's cache has folders named models--owner--name.
    for part in directory.absolute().parts:
        kind, *repository = part.split("--")
        if kind == "models" and len(repository) == 2:
            return f"For the hub's cache write {SCHEME}{'/'.join(repository)}"
    for folder in (directory, directory.parent):
        if folder.name.isdecimal() and (folder.parent / _CONFIG).is_file():
            return f"Give {folder.parent}, with pretrained_step {int(folder.name)}"
    return f"Give the directory of an Octo checkpoint, with {_CONFIG}; download it if it is corrupt"


def _read_params(path: Path) -> dict[str, Any]:
    """Returns all parameters of a msgpack file, nested dicts of numpy arrays."""
    # Named as what it is: otherwise the file would just be missing.
    if (path.parent / _NEWER_LAYOUT).exists():
        raise UserError(
            where=str(path.parent),
            expected=f"one msgpack file, {path.name}, with all parameters",
            found=f"another layout, that of newer releases of Orbax ({_NEWER_LAYOUT})",
            remedy=f"Restore it with Orbax, and write {path.name} with "
            "flax.serialization.msgpack_serialize(params) into a copy of the checkpoint",
        )
    params: Any = None
    try:
        params = serialization.msgpack_restore(path.read_bytes())
        found = ", ".join(map(str, params)) if isinstance(params, dict) else type(params).__name__
    except OSError as error:
        found = str(error)
    except (ValueError, TypeError) as error:
        found = f"{path.stat().st_size} bytes that end early or are corrupt ({error})"
    if not isinstance(params, dict) or not params.keys() >= _PARTS:
        raise DataError(
            where=str(path),
            expected=f"a msgpack file with the keys {sorted(_PARTS)}",
            found=found or "nothing",
            remedy="Give a whole Octo checkpoint that can be read: download it again",
        )
    return params
