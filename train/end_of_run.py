"""Writes what follows a run's last checkpoint: last validation, predicted episode and report.

The run is complete once that checkpoint is written. If a later part fails, the error is logged, and
`octograin report RUN` writes what is missing.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from pipeline.errors import UserError
from train import distributed
from train.checkpoints.checkpoint_store import last_step, read_checkpoint, read_loader_state
from train.checkpoints.run_directory import read_config
from train.metrics.validation import Validator
from train.metrics.validation_files import EPISODE_NAME, append_validation, read_validation
from train.report import write_report
from train.run_plan import Setup, keep_compiled, set_up
from train.run_resources import open_inputs
from train.train_config import TrainConfig
from train.update.train_state import TrainState, averaged_params
from train.update.train_step import LanguageTable

_log = logging.getLogger("train.run")


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


def conclude(
    setup: Setup, state: TrainState, table: LanguageTable, directory: pathlib.Path
) -> None:
    """Writes the predicted action chunks of an episode, and the report, of a complete run.

    Args:
      setup: The set-up run.
      state: The last training state.
      table: The language table that `make_language_table` returns.
      directory: The run directory.
    """
    if setup.validator is not None:
        with reported("the chunks of an episode", directory):
            params = averaged_params(state.params, state.ema, setup.config.frozen)
            _predict_episode(setup.validator, params, table, directory)
    with reported("the report", directory):
        if distributed.is_writer():
            write_report(directory)


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
    if not planned.data.validation_fraction or (
        is_validated and (directory / EPISODE_NAME).exists()
    ):
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
    params = jax.device_put(checkpoint.params, setup.whole)
    table = setup.encode_language(params)
    if not is_validated:
        append_validation(directory, setup.validator.run(params, table, step))
    _predict_episode(setup.validator, params, table, directory)


def _predict_episode(
    validator: Validator, params: Any, table: LanguageTable, directory: pathlib.Path
) -> None:
    episode = validator.episode(params, table)

    def save() -> None:
        if distributed.is_writer():
            episode.save(directory)

    distributed.together(save)
