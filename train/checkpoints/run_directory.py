"""The run directory: which process may write into it, and whether a run may start or resume."""

import contextlib
import fcntl
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator

from flax import traverse_util

from pipeline.checksums import read_json, write_json
from pipeline.data.token_provenance import check_same_encoders
from pipeline.errors import DataError, UserError
from pipeline.files import locked, temporary_of, temporary_path, to_json_values
from pipeline.loading.loader import Loader
from pipeline.parts.part import without_sources
from train.checkpoints.checkpoint_store import (
    SavedStep,
    last_step,
    read_datasets,
    read_kept_config,
    read_loader_state,
)
from train.train_config import OptimizerConfig, TrainConfig, parse_config

CONFIG_NAME = "config.json"
REPORT_NAME = "report.html"
LOCK_NAME = ".lock"
ENVIRONMENT_NAME = "environment.json"
_ELSEWHERE = "change settings in the file that --config names"
ONLY_A_RECORD = f"If you edited it, undo that, and {_ELSEWHERE}."
"""Remedy for a changed config.json, which only records the run's config and sets nothing."""
_CORRUPT = f"{ONLY_A_RECORD} Or start a new run in another save_dir, or delete this directory."
_OWN = re.compile(
    r"""(config|datasets|environment|load_report)\.json | (metrics|validation)\.jsonl | report\.html
    | description\.txt | episode\.npz | views\.png | wandb_id\.txt
    | checkpoints | evaluation | parts | skipped | tensorboard | wandb""",
    re.VERBOSE,
)
"""All that a run writes into its directory; nothing else is ever deleted there."""
_MAY_DIFFER = re.compile(
    r"""name | save_dir | save_interval | keep_checkpoints | keep_every | compilation_cache
    | validation\..* | wandb\..*
    # These change batches, gradients and updates only by rounding.
    | fsdp_devices | model\.remat | optimizer\.accumulation_steps | optimizer\.max_skipped
    | data\.(num_threads|prefetch_batches|ram_budget_gb)
    # Pretrained weights are read only at the start; the schedule's length is compared apart.
    | pretrained([_.].*)? | num_steps
    # These decide what a robot is sent, at rollout.
    | data\.gripper_rules
    # The data is compared by content, through the loader's state.
    | data\.(datasets|balance|split|validation_fraction|normalized|statistics|vocabulary|may_differ)
    """,
    re.VERBOSE,
)
"""Fields that a resumed run may change, by dotted path."""
_log = logging.getLogger(__name__)


def check(config: TrainConfig, *, resume: bool, overwrite: bool) -> TrainConfig | None:
    """Returns the config of the run that is in the directory, if any; changes nothing.

    Args:
      config: The config of the run that is to start.
      resume: Whether to resume the run in the directory.
      overwrite: Whether to delete the run in the directory.

    Raises:
      UserError: The run may not use the directory.
    """
    directory = pathlib.Path(config.save_dir)
    # The lock and the atomic renames need a file system.
    if "://" in config.save_dir:
        raise _refused(config, "a local directory", config.save_dir, "Name a path on this machine.")
    if resume and overwrite:
        raise _refused(config, "--resume or --overwrite", "both", "Choose one.")
    with _writing(config):  # such as a name that is too long
        # First: no other setting helps to resume a policy without its optimizer state.
        if resume and last_step(directory) is not None:
            SavedStep(directory).check_resumable()
        before, entries = read_config(directory), _entries(directory)
    if resume:
        _check_same_run(config, before)
        return before
    # Deleting a run must not delete what a link leads to, nor what a person keeps beside the run.
    foreign = [
        f"{e.name} -> {e.resolve()}" if e.is_symlink() else e.name
        for e in entries
        if (e.is_symlink() and e.is_dir()) or not _OWN.fullmatch(e.name)
    ]
    new = "a new or empty directory"
    if before is not None and not overwrite:
        remedy = "Continue with it: --resume. Delete it: --overwrite. Or name another save_dir."
        raise _refused(config, new, "a run", remedy)
    if before is not None and foreign:
        found = f"files that are not the run's: {', '.join(sorted(foreign))}"
        remedy = "Move them elsewhere, or name another save_dir."
        raise _refused(config, "a run that can be deleted", found, remedy)
    # Only a directory with a run, or an empty one, is ever emptied.
    if before is None and (entries or (directory.exists() and not directory.is_dir())):
        found = "files that are no run" if entries else "a file"
        raise _refused(config, new, found, "Name another save_dir.")
    return before


@contextlib.contextmanager
def claimed(config: TrainConfig, *, resume: bool, overwrite: bool) -> Iterator[pathlib.Path]:
    """Claims the run directory for this process while the block lasts, and records the config.

    Unless the run is resumed, the previous content is deleted, its config last: whenever the
    process is killed, the directory is still recognised as a run. The claim ends with the process.

    Raises:
      UserError: As `check`, which is called with the same arguments once this process has the
        directory; or the directory cannot be created, or another process has it.
    """
    directory = pathlib.Path(config.save_dir)
    with _writing(config):
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / LOCK_NAME, _in_use(config)) as lock:
        with _writing(config):
            # For the message of the next one who finds the lock taken.
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
            # Again, under the lock: another process may have changed the directory meanwhile.
            before = check(config, resume=resume, overwrite=overwrite)
            if before is not None and not resume:
                # It may be lost, and is what marks the directory as a run while the rest goes.
                write_json(directory / CONFIG_NAME, to_json_values(before))
            for entry in list(directory.iterdir()):
                # The lock is held, so nobody is writing the unfinished ones.
                if _is_unfinished(entry) or not (resume or entry.name in {LOCK_NAME, CONFIG_NAME}):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_json(directory / CONFIG_NAME, to_json_values(config))
        yield directory


def check_usable(config: TrainConfig) -> None:
    """Raises a `UserError` if another process uses the run, or its directory cannot be written.

    Nothing is left behind.
    """
    directory = pathlib.Path(config.save_dir)
    place = existing_part(directory)
    if not place.is_dir():
        remedy = "Move it, or name another save_dir."
        raise _refused(config, f"a directory at {place}", "a file", remedy)
    if (lock := directory / LOCK_NAME).is_file():
        with _writing(config), lock.open() as file:
            try:
                # A shared lock fails only where a run holds the exclusive one.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _in_use(config) from error
    # By the effective user, where the system can ask for it.
    access = functools.partial(os.access, effective_ids=os.access in os.supports_effective_ids)
    needed = [(e, os.W_OK | (os.X_OK if e.is_dir() else 0)) for e in (place, *_entries(directory))]
    if refused := [str(entry) for entry, rights in needed if not access(entry, rights)]:
        found = f"{', '.join(refused)}, which this user may not write"
        remedy = "Allow it, or name another save_dir."
        raise _refused(config, "a directory that can be written", found, remedy)
    # A kill leaves a name that the next run recognises.
    probe = temporary_path(place / "probe")
    with _writing(config):
        try:
            (probe / directory.absolute().relative_to(place)).mkdir(parents=True)
        except OSError as error:
            error.filename = str(directory)  # a user knows no probe
            raise
        finally:
            if probe.exists():
                shutil.rmtree(probe)


def existing_part(path: pathlib.Path) -> pathlib.Path:
    """Returns the path itself if it exists, even as a broken link; else the nearest parent."""
    place = path.absolute()
    # `lexists`: a broken link is in the way, although it leads nowhere.
    while not os.path.lexists(place):
        place = place.parent
    return place


def _entries(directory: pathlib.Path) -> list[pathlib.Path]:
    """Lists a directory without the claim and without files that a killed process left."""
    entries = directory.iterdir() if directory.is_dir() else ()
    return [e for e in entries if e.name != LOCK_NAME and not _is_unfinished(e)]


def _is_unfinished(entry: pathlib.Path) -> bool:
    """Returns whether a killed process left a temporary file; a link may lead anywhere."""
    return temporary_of(entry.name) is not None and not entry.is_symlink()


def read_config(directory: pathlib.Path) -> TrainConfig | None:
    """Returns the config of a run, or else that of its checkpoints; None if there is no run."""
    path, why = directory / CONFIG_NAME, "is lost"
    try:
        if path.is_file():
            text = json.dumps(read_json(path, remedy=_CORRUPT))
            return parse_config(text, where=str(path), remedy=_CORRUPT, directory=directory)
        kept = read_kept_config(directory)
    except DataError as error:
        # A corrupt record of the config does not stop a resume: each checkpoint has the config too.
        if (kept := read_kept_config(directory)) is None:
            raise
        why = f"cannot be read ({error.found}; {_ELSEWHERE})"
    if kept is not None:
        _log.warning("%s %s: the config is taken from the last checkpoint", path, why)
    return kept


def _check_same_run(config: TrainConfig, before: TrainConfig | None) -> None:
    if before is None:
        raise _refused(config, "a run to resume", "none", "Start it without --resume.")
    then, now = (
        # Of another source of a part there is a warning.
        traverse_util.flatten_dict(without_sources(to_json_values(each)), sep=".")
        for each in (before, config)
    )
    differing = [
        f"{key}: {then.get(key)} then, {now.get(key)} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not _MAY_DIFFER.fullmatch(key)
    ]
    steps = last_step(pathlib.Path(config.save_dir)) or 0
    if before.num_steps != config.num_steps and not _may_be_extended(config.optimizer, steps):
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


def _may_be_extended(config: OptimizerConfig, steps: int) -> bool:
    """Returns whether the rates of the first `steps` training steps do not depend on num_steps."""
    # Without `decay_steps` the decay does, but not the warm-up before it, apart from rounding.
    return config.schedule != "cosine" or bool(config.decay_steps) or steps <= config.warmup_steps


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
    directory = pathlib.Path(config.save_dir)
    kept = read_kept_config(directory)
    # Before the mixture is compared: this message names the flag that helps a run of an earlier
    # release, which normalised only `proprio`.
    before = [name for name in loader.lowdims if kept and kept.data.normalizes(name)]
    if kept and before != list(loader.normalized):
        raise UserError(
            where=f"save_dir {config.save_dir}, data.normalized",
            expected=f"the observations that the run normalises: {', '.join(before) or 'none'}",
            found=", ".join(loader.normalized) or "none",
            remedy=f"Add --config.data.normalized {' '.join(before)}".rstrip() + ".",
        )
    check_same_encoders(read_datasets(directory), loader.describe_datasets())
    position = loader.restore(read_loader_state(directory), new_mixture=new_mixture)
    if position >= config.num_steps:
        report = f"It has no report: `octograin report {directory}` writes it. "
        has_report = (directory / REPORT_NAME).exists()
        raise _refused(
            config,
            f"a run of fewer than {config.num_steps} steps",
            f"one of {position}",
            f"It is complete. {'' if has_report else report}{how_to_train_on(config)}",
        )
    return position


def how_to_train_on(config: TrainConfig) -> str:
    """Returns what to do to train a complete run further."""
    # The cosine reaches 0 at `decay_steps`, so more steps than that train nothing.
    end = config.optimizer.decay_steps
    if end is not None and config.num_steps < end:
        return f"To train on, raise --config.num_steps, to {end} at most."
    if end is None and _may_be_extended(config.optimizer, config.num_steps):
        return "To train on, raise --config.num_steps."
    return (
        "Its learning rate has decayed to 0; to train on from its weights, start a new run, with "
        f"--config.pretrained_path={config.save_dir} and another --config.save_dir."
    )


def _in_use(config: TrainConfig) -> UserError:
    """Returns the error for a directory whose lock another process holds."""
    lock = pathlib.Path(config.save_dir) / LOCK_NAME
    # What the holder wrote about itself.
    readable = lock.is_file() and os.access(lock, os.R_OK)
    holder = lock.read_text(errors="replace").strip() if readable else ""
    return _refused(
        config,
        "a run that no process is at work on",
        f"{holder or 'another process'} at work on it",
        "Wait for it or stop it, or name another save_dir.",
    )


@contextlib.contextmanager
def _writing(config: TrainConfig) -> Iterator[None]:
    """Turns the system's error inside the block, such as a name too long, into one for the user."""
    try:
        yield
    except OSError as error:
        expected, remedy = "a directory that can be written", "Name another save_dir."
        raise _refused(config, expected, str(error), remedy) from error


def _refused(config: TrainConfig, expected: str, found: str, remedy: str) -> UserError:
    return UserError(
        where=f"save_dir {config.save_dir}", expected=expected, found=found, remedy=remedy
    )
