"""`python -m train.run --config FILE[:VARIANT]`: finetunes Octo."""

import contextlib
import logging
import pathlib
import signal
import sys
from collections.abc import Iterator

from pipeline.arguments import named_arguments
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values
from pipeline.loading import device
from pipeline.memory import keep_freed_memory
from pipeline.terminal import log_to_stderr
from train import distributed
from train.batch_preview import save_views
from train.checkpoints import run_directory
from train.checkpoints.checkpoint_store import Checkpoints, Constants, last_step
from train.checkpoints.run_directory import REPORT_NAME, resume_position
from train.dry_run import examine
from train.end_of_run import conclude
from train.flags import Flags, check_flags, parse_flags
from train.guard import Guard, Stopped
from train.hub_datasets import pin_datasets
from train.metrics.validation_files import EPISODE_NAME
from train.run_description import log_start, write_description
from train.run_log import RunLog
from train.run_setup import Setup, keep_compiled, open_inputs, set_up
from train.train_config import TrainConfig
from train.update.skipped_updates import SkippedUpdates
from train.update.train_state import averaged_params

_log = logging.getLogger("train.run")
_INTERRUPTED = (
    "interrupted; the same command with --resume continues from the last checkpoint, or from the "
    "start if there is none"
)


def main() -> None:
    """Parses the command line and trains."""
    log_to_stderr()
    # Before numpy and jax allocate anything large: the setting does not move earlier blocks.
    keep_freed_memory()
    with user_errors_exit(interrupted=_INTERRUPTED):
        flags = parse_flags(sys.argv[1:])
        # The first call that involves the other processes; an error in a flag ends each on its own.
        distributed.join()
        # One process reports, or every line would appear once per host.
        reports = distributed.is_writer() and not flags.dry_run
        for package in ("train", "pipeline"):
            logging.getLogger(package).setLevel(logging.INFO if reports else logging.WARNING)
        if flags.dry_run:
            # `examine` returns the exit status: a dry run reports problems and raises none.
            raise SystemExit(examine(flags))
        try:
            run(flags)
        except Stopped as stopped:
            # Ctrl-C ends a run with the exit status of any interrupted command; a scheduler's
            # signal with 0.
            if stopped.by is signal.SIGINT:
                raise KeyboardInterrupt from None


@named_arguments("All other settings are fields of TrainConfig.")
def finetune(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> pathlib.Path:
    """Trains a run in this process, as `octograin train` does, and returns its directory.

    Args:
      config: The config of the run.
      resume: Whether to continue the run in `config.save_dir` from its last checkpoint.
      overwrite: Whether to delete the run in `config.save_dir` and start from scratch.

    Raises:
      UserError: Something is wrong that the user can fix.
      Stopped: A signal asked the run to stop; its state is saved.
    """
    if not isinstance(config, TrainConfig):
        raise UserError(
            where="finetune, config",
            expected="a TrainConfig",
            found=f"a {type(config).__name__}",
            remedy="`load_config('configs/my_robot.py')` reads one from a file.",
        )
    return run(Flags(config, resume=resume, overwrite=overwrite))


def run(flags: Flags) -> pathlib.Path:
    """Trains a run, and returns its directory.

    Everything that can be checked without compiling is checked before the directory is changed.

    Raises:
      UserError: Something is wrong that the user can fix.
      Stopped: A signal asked the run to stop; its state is saved.
    """
    check_flags(flags)
    flags = distributed.together(lambda: pin_datasets(flags))
    keep_compiled(flags.config)
    with Guard(flags.config) as guard:
        # Every process plans; an error in one is raised in all, so nobody waits for the others.
        setup, position = distributed.together(lambda: _plan(flags))
        _check_alike(setup, position)
        with _claimed(flags, position) as directory:
            distributed.together(lambda: _explain(flags, setup, position, directory))
            _train(setup, position, directory, guard)
    return directory


def _plan(flags: Flags) -> tuple[Setup, int | None]:
    """Returns the set-up run, and the training steps taken by the run that is resumed, if any."""
    config = flags.config
    run_directory.check(config, resume=flags.resume, overwrite=flags.overwrite)
    continues = flags.resume and last_step(pathlib.Path(config.save_dir)) is not None
    # A run killed before its first checkpoint is started again, not refused.
    if flags.resume and not continues:
        _log.warning("%s has no checkpoint yet: the run starts from scratch", config.save_dir)
    setup = set_up(config, open_inputs(config, resume=continues))
    if continues:
        return setup, resume_position(config, setup.loader, new_mixture=flags.new_mixture)
    # Weights that do not fit are an error before anything is changed.
    setup.account()
    return setup, None


def _check_alike(setup: Setup, position: int | None) -> None:
    """Raises an error if processes would train on different states or batches."""
    settings = to_json_values(setup.config)
    for name in ("save_dir", "compilation_cache", "pretrained_path", "data"):
        del settings[name]  # paths may differ between hosts
    loader = setup.loader
    # Not the paths of the mixture: a host may mount the data elsewhere.
    mixture = [(part.data, part.settings, part.excluded) for part in loader.state(0).mixture]
    for what, text, found in (
        ("config and data", dump_json([settings, loader.fingerprint, mixture]), "others"),
        ("last checkpoint", str(position), f"step {position}"),
    ):
        error = UserError(
            where=f"save_dir {setup.config.save_dir}",
            expected=f"the {what} of process 0",
            found=found,
            remedy="Give the same command on every host, with a save_dir that all of them share.",
        )
        distributed.check_alike(text, error)


@contextlib.contextmanager
def _claimed(flags: Flags, position: int | None) -> Iterator[pathlib.Path]:
    """Claims the run directory in one process, for all; nothing in it is changed before."""
    directory = pathlib.Path(flags.config.save_dir)
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            # Every process calls this, one claims: a failure is then raised in all by `together`.
            if not distributed.is_writer():
                return
            stack.enter_context(
                run_directory.claimed(flags.config, resume=flags.resume, overwrite=flags.overwrite)
            )
            # Between the plan and the claim another process may have trained on.
            if flags.resume and last_step(directory) != position:
                raise UserError(
                    where=f"save_dir {directory}",
                    expected=f"a run whose last checkpoint is of step {position}",
                    found=f"one of step {last_step(directory)}, which another process has just "
                    "written",
                    remedy="Run the same command again.",
                )
            for name in (REPORT_NAME, EPISODE_NAME):  # they no longer describe the whole run
                (directory / name).unlink(missing_ok=True)

        distributed.together(claim)
        yield directory


def _explain(flags: Flags, setup: Setup, position: int | None, directory: pathlib.Path) -> None:
    """Saves and logs the resolved config, data, weights and environment of the run."""
    if distributed.is_writer():
        write_description(directory, flags, setup)
    log_start(flags, setup, position)


def _train(setup: Setup, position: int | None, directory: pathlib.Path, guard: Guard) -> None:
    """Trains from the start or from a position, saves and validates, and writes the report."""
    config, loader = setup.config, setup.loader
    train_step = setup.compile()
    guard.record_ctrl_c()
    skipped = SkippedUpdates(loader, config.optimizer.max_skipped, directory)
    with RunLog(setup, directory, position or 0, watch=skipped.note) as log:
        with Checkpoints(directory, config.keep_checkpoints, config.keep_every) as checkpoints:
            if position is None:
                state, step = setup.first_state(), 0
            else:
                # Restored right into the shapes and shardings of the compiled step.
                state, step = checkpoints.restore(setup.state), position
                _log.info("resumed at step %d", position)
            # A frozen encoder runs once per instruction of the run, not once per training step.
            table = setup.encode_language(state.params)
            vocabulary = setup.inputs.vocabulary.serialized_model_proto()
            constants = Constants(config, loader.describe_datasets(), vocabulary)

            # Both take `state` and `step` as they are when they are called.
            def save() -> None:
                # Every row is written before the checkpoint that a resumed run starts from.
                guard.attempt(log.flush)
                checkpoints.save(state, loader.state(step), constants)
                log.start_clock()

            def validate() -> None:
                guard.attempt(log.flush)
                params = averaged_params(state.params, state.ema, config.frozen)
                guard.attempt(log.validate, params, table, step)
                log.start_clock()

            # A run may have been stopped between a save and its validation.
            if position and config.is_validated_after(step) and log.lacks_validation(step):
                validate()
            with contextlib.closing(loader.batches(step)) as batches, guard.unexpected():
                on_devices = device.one_ahead(batches, setup.sharding)
                log.start_clock()
                while step < config.num_steps:
                    with log.waiting():
                        batch = guard.attempt(on_devices.__next__)
                    # The training step is a collective, which all processes enter or none.
                    guard.check(step, save)
                    arrays, on_host = batch
                    if step == 0 and distributed.is_writer():
                        guard.attempt(save_views, config, on_host.arrays, directory)
                    # Returns once the step is dispatched; its metrics are read one step later.
                    state, metrics = train_step(state, arrays, table)
                    step += 1
                    del batch, arrays  # frees their device memory for the next batch
                    guard.attempt(log.add, step, metrics, on_host.fingerprint)
                    if config.is_saved_after(step):
                        save()
                    if config.is_validated_after(step):
                        validate()
            # An error of the last row is still to be raised, in all processes.
            guard.check(step, save)
        # The last checkpoint is on disk: the run is complete, whatever follows.
        guard.release()
        log.stop_bar()
        conclude(setup, state, table, directory, log)


if __name__ == "__main__":
    main()
