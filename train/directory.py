"""The run directory: who may write into it, and the config that explains it."""

import pathlib
import shutil

from pipeline.errors import DataError, UserError
from pipeline.files import dump_json, from_json_text, to_json_values, write_text_atomically
from train.config import TrainConfig

CONFIG_NAME = "config.json"
_DAMAGED = "Start a new run in another save_dir."
_MAY_DIFFER = {
    "save_dir",
    "save_interval",
    "keep_checkpoints",
    "num_steps",
    "pretrained_path",
    "data.datasets",
    "data.balance",
    "data.split",
    "data.validation_fraction",
    "data.statistics",
    "data.vocabulary",
    "data.num_threads",
    "data.prefetch_batches",
    "data.ram_budget_gb",
}
"""Fields that a resumed run may change: they change no batch, gradient or update, or, as the data,
are known by their content, which the loader's state compares."""


def check(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Raises where the run may not use its directory; changes nothing.

    Args:
      config: The run.
      resume: Whether the run in the directory goes on.
      overwrite: Whether a run in the directory is to be deleted.

    Raises:
      UserError: Where the directory is in use and neither flag is given, both are, it holds
        something else than a run, there is nothing to resume, or that run has another config.
    """
    directory = pathlib.Path(config.save_dir)
    if "://" in config.save_dir:
        raise _refused(config, "a local directory", config.save_dir, "Name a path on this machine.")
    if resume and overwrite:
        raise _refused(config, "--resume or --overwrite", "both", "Choose one.")
    before = _read_config(directory)
    if resume:
        _check_same_run(config, before)
    elif before is not None and not overwrite:
        remedy = "Go on with it: --resume. Delete it: --overwrite. Or name another save_dir."
        raise _refused(config, "a new or empty directory", "a run", remedy)
    elif before is None and directory.is_file():
        raise _refused(config, "a directory", "a file", "Name another save_dir.")
    elif before is None and directory.exists() and any(directory.iterdir()):
        remedy = "Name another save_dir."
        raise _refused(config, "a new or empty directory", "files that are no run", remedy)


def prepare(config: TrainConfig, *, resume: bool) -> pathlib.Path:
    """Makes the run's directory, without what stood there unless it is resumed; call `check` first.

    Raises:
      UserError: Where it cannot be made.
    """
    directory = pathlib.Path(config.save_dir)
    try:
        if directory.exists() and not resume:
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomically(directory / CONFIG_NAME, dump_json(to_json_values(config)))
    except OSError as error:
        raise _refused(
            config, "a directory that can be written", str(error), "Name another save_dir."
        ) from error
    return directory


def read_config(directory: pathlib.Path) -> TrainConfig:
    """The config of a run.

    Raises:
      UserError: Where there is no run in the directory.
    """
    config = _read_config(directory)
    if config is None:
        raise UserError(
            where=str(directory),
            expected=f"a run directory with a {CONFIG_NAME}",
            found="none in it" if directory.is_dir() else "no such directory",
            remedy="Name the save_dir of a run.",
        )
    return config


def _read_config(directory: pathlib.Path) -> TrainConfig | None:
    """The config of the run in a directory; None where there is no run."""
    path = directory / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise DataError(
            where=str(path), expected="a run's config", found=str(error), remedy=_DAMAGED
        ) from error
    return from_json_text(TrainConfig, text, where=str(path), remedy=_DAMAGED)


def _check_same_run(config: TrainConfig, before: TrainConfig | None) -> None:
    if before is None:
        raise _refused(config, "a run to resume", "none", "Start it without --resume.")
    then, now = _flatten(to_json_values(before)), _flatten(to_json_values(config))
    differing = [
        f"{key}: {then.get(key)} then, {now.get(key)} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in _MAY_DIFFER
    ]
    if before.num_steps != config.num_steps and config.optimizer.decay_steps is None:
        differing.append(
            f"num_steps: {before.num_steps} then, {config.num_steps} now, and the learning "
            "rate decays over num_steps unless optimizer.decay_steps is set"
        )
    if differing:
        remedy = "Resume with the run's own values, or start a new run in another save_dir."
        raise _refused(config, "the config of the run", "; ".join(differing), remedy)


def _flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Leaves by dotted path."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _refused(config: TrainConfig, expected: str, found: str, remedy: str) -> UserError:
    return UserError(
        where=f"save_dir {config.save_dir}", expected=expected, found=found, remedy=remedy
    )
