"""Writes what follows a run's last checkpoint: last validation, predicted episode and report.

The run is complete once that checkpoint is written. If a later part fails, the error is logged, and
`octograin report RUN` writes what is missing.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from pipeline.errors import UserError
from pipeline.parts.part_copies import own_files
from train import distributed
from train.checkpoints.checkpoint_store import last_step, read_checkpoint, read_loader_state
from train.checkpoints.run_directory import read_config
from train.metrics.validation import Validator
from train.metrics.validation_files import EPISODE_NAME, append_validation, read_validation
from train.report.report_inputs import NUM_LAST_STEPS, read_run
from train.run_description import labelled
from train.run_log import RunLog
from train.run_setup import Setup, keep_compiled, open_inputs, set_up
from train.train_config import TrainConfig
from train.update.train_state import TrainState, averaged_params
from train.update.train_step import LanguageTable

_log = logging.getLogger("train.run")


def conclude(
    setup: Setup,
    state: TrainState,
    table: LanguageTable,
    directory: pathlib.Path,
    log: RunLog,
) -> None:
    """Writes the last validation, the predicted action chunks of an episode, and the report.

    Args:
      setup: The set-up run.
      state: The last training state.
      table: The language table that `make_language_table` returns.
      directory: The run directory.
      log: The log of the run.
    """
    validator = setup.validator
    if validator is not None:
        params = averaged_params(state.params, state.ema, setup.config.frozen)
        with reported("its last validation", directory):
            log.validate(params, table, int(state.step))
        with reported("the chunks of an episode", directory):
            _predict_episode(validator, params, table, directory)
    if distributed.is_writer():
        with reported("the report", directory):
            # Here, as it imports matplotlib, which the start of a run need not wait for.
            from train.report.report_page import write_report  # noqa: PLC0415

            write_report(directory)
        with reported("the summary", directory):
            _log.info("%s", describe_end(directory, own_files(setup.config)))


@contextlib.contextmanager
def reported(part: str, directory: pathlib.Path) -> Iterator[None]:
    """Logs an error inside the block in one line: the run is complete without it.

    Args:
      part: What the block writes, such as "the report".
      directory: The run directory.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  (whatever it is, the weights are saved)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        _log.warning(
            "the run is complete, but %s failed: %s%s\nFix it, then run `octograin report "
            "%s` to write what is missing; it accepts --config flags too",
            part,
            kind,
            " ".join(str(error).split()),
            directory,
        )
        _log.debug("%s", part, exc_info=error)


def describe_end(directory: pathlib.Path, files: Sequence[str] = ()) -> str:
    """Returns what a complete run reached, and what to do with it.

    Args:
      directory: The run directory.
      files: Paths of the files that define users' classes.

    Raises:
      DataError: One of its files is corrupt.
    """
    run = read_run(directory)
    reached = [f"{run.steps} training steps"]
    if run.final_loss is not None:
        last = min(NUM_LAST_STEPS, run.steps)
        reached.append(f"mean loss of the last {last}: {run.final_loss:.3f}")
    validation = run.last_validation
    if validation is not None:
        constant = validation.constant_error
        beside = "" if math.isnan(constant) else f" (a constant action: {constant:.3f})"
        error = f"action error on held-out episodes: {validation.action_error:.3f}{beside}"
        reached.append(error)
    flags = " ".join(f"--parts {shlex.quote(path)}" for path in files)
    own = [("", f"add {flags} where they cannot import your classes")] if flags else []
    # The simulator shows LIBERO's scenes, which another robot has never seen.
    names = [str(values.get("name", path)) for path, values in run.datasets.items()]
    rollout = ("", f"octograin evaluate {directory}   rolls it out in the LIBERO simulator")
    evaluate = [rollout] if any("libero" in name.lower() for name in names) else []
    return labelled(
        [
            ("reached", "; ".join(reached)),
            ("report", str(directory / "report.html")),
            ("next", f"octograin parity {directory}   compares its inputs with those of training"),
            ("", f"octograin serve {directory}   answers a robot over the network"),
            *evaluate,
            *own,
        ]
    )


def make_up(directory: pathlib.Path, change: Callable[[TrainConfig], TrainConfig]) -> None:
    """Writes what a complete run lacks, from its last checkpoint and its data.

    Args:
      directory: The run directory.
      change: Maps the checkpoint's config to the one to use, such as with other paths.

    Raises:
      UserError: The checkpoint or data cannot be read, or the data differs from the run's.
    """
    step = last_step(directory)
    planned = None if step is None else read_config(directory)
    # A run that is not complete is resumed, not made up.
    if step is None or planned is None or step < planned.num_steps:
        return
    is_validated = any(one.step == step for one in read_validation(directory))
    is_whole = is_validated and (directory / EPISODE_NAME).exists()
    if is_whole or not planned.data.validation_fraction:
        return
    checkpoint = read_checkpoint(directory)
    config = dataclasses.replace(
        change(checkpoint.config),
        save_dir=str(directory),
        # On this machine, whatever the run had: one sample needs no sharding.
        fsdp_devices=1,
        optimizer=dataclasses.replace(checkpoint.config.optimizer, accumulation_steps=1),
    )
    keep_compiled(config)
    setup = set_up(config, open_inputs(config, resume=True))
    # Data that has changed since would give another validation.
    setup.loader.restore(read_loader_state(directory), new_mixture=False)
    if setup.validator is None:
        return
    # The checkpoint holds the averaged parameters already.
    params = jax.device_put(checkpoint.params, setup.replicated)
    table = setup.encode_language(params)
    if not is_validated:
        append_validation(directory, setup.validator.run(params, table, step))
    _predict_episode(setup.validator, params, table, directory)


def _predict_episode(
    validator: Validator, params: Any, table: LanguageTable, directory: pathlib.Path
) -> None:
    episode = validator.episode(params, table)
    distributed.together(lambda: distributed.is_writer() and episode.save(directory))
