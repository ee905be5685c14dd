"""The run directory: which process may write into it, and the config stored in it."""

import contextlib
import fcntl
import fnmatch
import json
import logging
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import TextIO

from pipeline.checksums import read_json, write_json
from pipeline.data.token_provenance import check_same_encoders
from pipeline.errors import DataError, UserError
from pipeline.files import temporary_of, to_json_values
from pipeline.loading.loader import Loader
from train.checkpoints.checkpoint_store import read_datasets, read_kept_config, read_loader_state
from train.train_config import TrainConfig, parse_config

CONFIG_NAME = "config.json"
_log = logging.getLogger(__name__)
_ELSEWHERE = "change settings in the file that --config names"
ONLY_A_RECORD = f"If you edited it, undo that, and {_ELSEWHERE}."
"""Remedy for a changed config.json, which only records the run's config and sets nothing."""
_CORRUPT = f"{ONLY_A_RECORD} Or start a new run in another save_dir, or delete this directory."
LOCK_NAME = ".lock"
REPORT_NAME = "report.html"
ENVIRONMENT_NAME = "environment.json"
_PROBE = ".probe."
_OWN = frozenset(
    {
        CONFIG_NAME,
        REPORT_NAME,
        "checkpoints",
        "datasets.json",
        "description.txt",
        ENVIRONMENT_NAME,
        "episode.npz",
        "evaluation",
        "load_report.json",
        "metrics.jsonl",
        "skipped",
        "tensorboard",
        "validation.jsonl",
        "views.png",
        "wandb",
        "wandb_id.txt",
    }
)
"""All that a run writes into its directory; nothing else is ever deleted there."""
_MAY_DIFFER = (
    "name",
    "save_dir",
    "save_interval",
    "keep_checkpoints",
    "keep_every",
    "validation.*",
    "wandb.*",
    "compilation_cache",
    "fsdp_devices",
    "model.remat",
    "optimizer.accumulation_steps",
    "optimizer.max_skipped",
    "num_steps",
    "pretrained_*",
    "data.datasets",
    "data.balance",
    "data.split",
    "data.validation_fraction",
    "data.normalized",
    "data.statistics",
    "data.vocabulary",
    "data.num_threads",
    "data.prefetch_batches",
    "data.ram_budget_gb",
    "data.may_differ",
)
"""Globs over fields that a resumed run may change. They change batches, gradients and updates only
by rounding; or are read only at the start, as pretrained weights; or are compared by content, as
the data is through the loader's state."""


def check(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Raises an error if the run may not use its directory; changes nothing.

    Args:
      config: The config of the run.
      resume: Whether to resume the run in the directory.
      overwrite: Whether to delete the run in the directory.

    Raises:
      UserError: The directory is in use and neither flag is given, both flags are given, the
        directory
        holds something other than a run, there is nothing to resume, or that run has another
        config.
    """
    try:
        _check(config, resume=resume, overwrite=overwrite)
    except OSError as error:  # such as a name that is too long
        raise _unwritable(config, error) from error


def _check(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    directory = pathlib.Path(config.save_dir)
    # The lock and the atomic renames need a file system.
    if "://" in config.save_dir:
        raise _refused(config, "a local directory", config.save_dir, "Name a path on this machine.")
    if resume and overwrite:
        raise _refused(config, "--resume or --overwrite", "both", "Choose one.")
    before = read_config(directory)
    if resume:
        _check_same_run(config, before)
    elif before is not None and not overwrite:
        remedy = "Continue with it: --resume. Delete it: --overwrite. Or name another save_dir."
        raise _refused(config, "a new or empty directory", "a run", remedy)
    elif before is not None and (links := _links(directory)):
        # Deleting a run must not delete what a link leads to.
        remedy = "Remove the link, and what it leads to if nothing else needs it."
        raise _refused(config, "a run that can be deleted", f"a link to elsewhere: {links}", remedy)
    elif before is not None and (foreign := sorted({e.name for e in _entries(directory)} - _OWN)):
        # A person may keep notes or other results beside the run.
        remedy = "Move them elsewhere, or name another save_dir."
        found = f"files that are not the run's: {', '.join(foreign)}"
        raise _refused(config, "a run that can be deleted", found, remedy)
    elif before is None and directory.exists() and not directory.is_dir():
        raise _refused(config, "a directory", "a file", "Name another save_dir.")
    elif before is None and directory.exists() and _entries(directory):
        # Only a directory with a run, or an empty one, is ever emptied.
        remedy = "Name another save_dir."
        raise _refused(config, "a new or empty directory", "files that are no run", remedy)


@contextlib.contextmanager
def claimed(config: TrainConfig, *, resume: bool, overwrite: bool) -> Iterator[pathlib.Path]:
    """Claims the run directory for this process while the block lasts.

    Unless the run is resumed, the previous content is deleted, its config last: whenever the
    process
    is killed, the directory is still recognised as a run. The claim ends with the process in any
    case.

    Args:
      config: The config of the run; `check` is called once this process has the directory.
      resume: Whether to resume the run in the directory.
      overwrite: Whether to delete the run in the directory.

    Raises:
      UserError: The same as `check`; or the directory cannot be created, or another process has it.
    """
    directory = pathlib.Path(config.save_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # "a+": created if missing, and not truncated before the lock is held.
        lock = (directory / LOCK_NAME).open("a+")
    except OSError as error:
        raise _unwritable(config, error) from error
    with lock:
        try:
            _lock(config, lock)
        except OSError as error:  # a full disk, or a file system without locks
            raise _unwritable(config, error) from error
        # Checked again under the lock: another process may have changed the directory meanwhile.
        check(config, resume=resume, overwrite=overwrite)
        try:
            # The lock is held, so nobody is writing these.
            for unfinished in filter(_is_unfinished, list(directory.iterdir())):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
            if not resume:
                _empty(directory)
            # Last: while the rest is deleted, the directory is still recognised as a run.
            write_json(directory / CONFIG_NAME, to_json_values(config))
        except OSError as error:
            raise _unwritable(config, error) from error
        yield directory


def _empty(directory: pathlib.Path) -> None:
    """Deletes a run except for its config, which is rewritten if it is lost."""
    before = read_config(directory)
    if before is not None:
        # Written again if only checkpoints had it: it is what marks the directory as a run.
        write_json(directory / CONFIG_NAME, to_json_values(before))
    for entry in _entries(directory):
        if entry.name != CONFIG_NAME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def check_usable(config: TrainConfig) -> None:
    """Raises an error if another process is using the run, or its directory cannot be written.

    The missing folders are created inside a temporary one and removed again: permissions alone do
    not show whether a file system, such as /proc, accepts new folders.

    Raises:
      UserError: The directory is in use or cannot be written.
    """
    directory = pathlib.Path(config.save_dir)
    holder = _holder(directory / LOCK_NAME)
    if holder is not None:
        raise _in_use(config, holder)
    place = existing_part(directory)
    if not place.is_dir():
        remedy = "Move it, or name another save_dir."
        raise _refused(config, f"a directory at {place}", "a file", remedy)
    needed = [place, *(directory.iterdir() if directory.is_dir() else [])]
    refused = [path for path in needed if not _is_writable(path)]
    if refused:
        raise _refused(
            config,
            "a directory that can be written",
            f"{', '.join(map(str, refused))}, which this user may not write",
            "Allow it, or name another save_dir.",
        )
    try:
        # Removed at the end of the block; a kill leaves a name that the next run recognises.
        with tempfile.TemporaryDirectory(dir=place, prefix=_PROBE, suffix=".tmp") as probe:
            (pathlib.Path(probe) / directory.absolute().relative_to(place)).mkdir(
                parents=True, exist_ok=True
            )
    except OSError as error:
        raise _unwritable(config, error) from error


def existing_part(path: pathlib.Path) -> pathlib.Path:
    """Returns the path itself if it exists, even as a broken link; else the nearest parent."""
    place = path.absolute()
    # `lexists`: a broken link is in the way, although it leads nowhere.
    while not os.path.lexists(place):
        place = place.parent
    return place


def _holder(lock: pathlib.Path) -> str | None:
    """Returns which process has the claim; None: none, or it may not be read."""
    try:
        with lock.open() as file:
            try:
                # A shared lock fails only where a run holds the exclusive one.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        return None
    return None


def _is_writable(path: pathlib.Path) -> bool:
    needed = os.W_OK | os.X_OK if path.is_dir() else os.W_OK
    # By the effective user, where the system can ask for it.
    return os.access(path, needed, effective_ids=os.access in os.supports_effective_ids)


def _lock(config: TrainConfig, file: TextIO) -> None:
    """Locks a file and writes into it which process has it."""
    try:
        # Without waiting: a run takes hours. The lock ends with the process, even after SIGKILL.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        # What the holder wrote about itself.
        file.seek(0)
        raise _in_use(config, file.read().strip() or "another process") from error
    file.truncate(0)
    # For the message of the next one who finds the lock taken.
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def _entries(directory: pathlib.Path) -> list[pathlib.Path]:
    """Lists a directory without the claim and without files that a killed process left."""
    return [
        entry
        for entry in directory.iterdir()
        if entry.name != LOCK_NAME and not _is_unfinished(entry)
    ]


def _is_unfinished(entry: pathlib.Path) -> bool:
    """Returns whether a killed process of this project left it: a temporary file or a probe.

    A link is never one: it may lead anywhere.
    """
    is_probe = entry.name.startswith(_PROBE) and entry.name.endswith(".tmp")
    return (is_probe or temporary_of(entry.name) is not None) and not entry.is_symlink()


def _links(directory: pathlib.Path) -> str:
    """Returns the links to folders in a run, which are not deleted with it; empty if none."""
    links = [entry for entry in _entries(directory) if entry.is_symlink() and entry.is_dir()]
    return ", ".join(f"{entry.name} -> {entry.resolve()}" for entry in links)


def read_config(directory: pathlib.Path) -> TrainConfig | None:
    """Returns the config of a run, or else that of its checkpoints; None if there is no run."""
    path = directory / CONFIG_NAME
    try:
        if path.is_file():
            text = json.dumps(read_json(path, remedy=_CORRUPT))
            return parse_config(text, where=str(path), remedy=_CORRUPT)
    except DataError as error:
        # A corrupt record of the config does not stop a resume: each checkpoint has the config too.
        kept = read_kept_config(directory)
        why = f"{path} cannot be read ({error.found}; {_ELSEWHERE})"
        if kept is None:
            raise
    else:
        kept, why = read_kept_config(directory), f"{path} is lost"
    if kept is not None:
        _log.warning("%s: the config is taken from the last checkpoint", why)
    return kept


def _check_same_run(config: TrainConfig, before: TrainConfig | None) -> None:
    if before is None:
        raise _refused(config, "a run to resume", "none", "Start it without --resume.")
    then, now = flatten(to_json_values(before)), flatten(to_json_values(config))
    differing = [
        f"{key}: {then.get(key)} then, {now.get(key)} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
        # By globs, since configs have nested fields.
        and not any(fnmatch.fnmatchcase(key, glob) for glob in _MAY_DIFFER)
    ]
    # The whole schedule would change with `num_steps`.
    decays = config.optimizer.schedule == "cosine" and config.optimizer.decay_steps is None
    if before.num_steps != config.num_steps and decays:
        differing.append(
            f"num_steps: {before.num_steps} then, {config.num_steps} now, and the learning "
            "rate decays over num_steps unless optimizer.decay_steps is set"
        )
    if differing:
        remedy = (
            "Resume with the run's own values, or start a new run in another save_dir, from this "
            f"one's weights with --config.pretrained_path={config.save_dir}."
        )
        raise _refused(config, "the config of the run", "; ".join(differing), remedy)


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Flattens nested values to leaves by dotted path."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _in_use(config: TrainConfig, holder: str) -> UserError:
    return _refused(
        config,
        "a run that no process is at work on",
        f"{holder} at work on it",
        "Wait for it or stop it, or name another save_dir.",
    )


def _unwritable(config: TrainConfig, error: OSError) -> UserError:
    remedy = "Name another save_dir."
    return _refused(config, "a directory that can be written", str(error), remedy)


def _refused(config: TrainConfig, expected: str, found: str, remedy: str) -> UserError:
    return UserError(
        where=f"save_dir {config.save_dir}", expected=expected, found=found, remedy=remedy
    )


def resume_position(config: TrainConfig, loader: Loader, *, new_mixture: bool) -> int:
    """Returns how many batches the last checkpoint has used, after checking config and data.

    Args:
      config: The config of the run.
      loader: The loader of the run's batches; its later states record the earlier mixtures.
      new_mixture: Whether the mixture may differ from now on.

    Raises:
      UserError: There is no checkpoint, it cannot be read, the run is complete, or the tokens come
        from another encoder.
      DataError: The checkpoint is corrupt, or belongs to another config or other data.
    """
    run_directory = pathlib.Path(config.save_dir)
    # Before the mixture is compared: this message names the flag that helps.
    _check_normalized(config, loader)
    check_same_encoders(read_datasets(run_directory), loader.describe_datasets())
    position = loader.restore(read_loader_state(run_directory), new_mixture=new_mixture)
    if position >= config.num_steps:
        raise UserError(
            where=f"save_dir {config.save_dir}",
            expected=f"a run of fewer than {config.num_steps} steps",
            found=f"one of {position}",
            remedy=f"It is complete. {_make_up(run_directory)}{how_to_train_on(config)}",
        )
    return position


def _make_up(run_directory: pathlib.Path) -> str:
    if (run_directory / REPORT_NAME).exists():
        return ""
    return f"It has no report: `octograin report {run_directory}` writes it. "


def how_to_train_on(config: TrainConfig) -> str:
    """Returns what to do to train a complete run further."""
    end = config.optimizer.decay_steps or config.num_steps
    if config.optimizer.schedule != "cosine":
        return "To train on, raise --config.num_steps."
    # The cosine reaches 0 at `decay_steps`, so more steps than that train nothing.
    if config.num_steps < end:
        return f"To train on, raise --config.num_steps, to {end} at most."
    return (
        "Its learning rate has decayed to 0; to train on from its weights, start a new run, with "
        f"--config.pretrained_path={config.save_dir} and another --config.save_dir."
    )


def _check_normalized(config: TrainConfig, loader: Loader) -> None:
    """Checks that a run of an earlier release, which normalised only `proprio`, still does so."""
    kept = read_kept_config(pathlib.Path(config.save_dir))
    if kept is None:
        return
    before = [name for name in loader.lowdims if kept.data.normalizes(name)]
    if before != list(loader.normalized):
        raise UserError(
            where=f"save_dir {config.save_dir}, data.normalized",
            expected=f"the observations that the run normalises: {', '.join(before) or 'none'}",
            found=", ".join(loader.normalized) or "none",
            remedy=f"Add --config.data.normalized {' '.join(before)}".rstrip() + ".",
        )
