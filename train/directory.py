"""The run directory: who may write into it, and what explains it."""

import json
import pathlib
import shutil

from pipeline.errors import DataError, UserError
from pipeline.files import dump_json, to_json_values, write_text_atomically
from train.checkpoints import DIRECTORY
from train.config import TrainConfig

CONFIG_NAME = "config.json"
_MAY_DIFFER = (
    "save_dir",
    "save_interval",
    "num_steps",
    "data.num_threads",
    "data.prefetch_batches",
)
"""Fields that a resumed run may change: they change no batch, gradient or update."""


def prepare(config: TrainConfig, *, resume: bool, overwrite: bool) -> pathlib.Path:
    """The directory of the run, with its resolved config in it.

    Args:
      config: The run.
      resume: Whether the run in the directory goes on.
      overwrite: Whether a run in the directory is deleted.

    Raises:
      UserError: Where the directory is in use and neither flag is given, both are, there is
        nothing to resume, or the run to resume has another config.
    """
    directory = pathlib.Path(config.save_dir)
    path = directory / CONFIG_NAME
    if resume and overwrite:
        raise _refused(directory, "--resume or --overwrite", "both", "Choose one.")
    if resume:
        _check_same_run(config, path)
    elif path.exists():
        if not overwrite:
            found = "a run, with its checkpoints" if (directory / DIRECTORY).exists() else "a run"
            remedy = "Go on with it: --resume. Delete it: --overwrite. Or name another save_dir."
            raise _refused(directory, "a new or empty directory", found, remedy)
        shutil.rmtree(directory)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        remedy = "Name another save_dir."
        raise _refused(directory, "a new or empty directory", "files that are no run", remedy)
    directory.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, dump_json(to_json_values(config)))
    return directory


def _check_same_run(config: TrainConfig, path: pathlib.Path) -> None:
    if not path.exists():
        raise _refused(path.parent, "a run to resume", "none", "Start it without --resume.")
    try:
        before = _flatten(json.loads(path.read_text()))
    except ValueError as error:
        raise DataError(
            where=str(path),
            expected="the run's config",
            found=str(error),
            remedy="The run directory is damaged: start anew with --overwrite.",
        ) from error
    now = _flatten(to_json_values(config))
    differing = [
        f"{key}: {before.get(key)} then, {now.get(key)} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _MAY_DIFFER
    ]
    if before["num_steps"] != now["num_steps"] and config.optimizer.decay_steps is None:
        differing.append(
            f"num_steps: {before['num_steps']} then, {now['num_steps']} now, and the learning "
            "rate decays over num_steps unless optimizer.decay_steps is set"
        )
    if differing:
        remedy = "Resume with the run's own values, or start a new run in another save_dir."
        raise _refused(path.parent, "the config of the run", "; ".join(differing), remedy)


def _flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Leaves by dotted path."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _refused(directory: pathlib.Path, expected: str, found: str, remedy: str) -> UserError:
    return UserError(where=f"save_dir {directory}", expected=expected, found=found, remedy=remedy)
