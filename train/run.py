"""`python -m train.run --config FILE[:VARIANT]`: finetunes Octo."""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pipeline.arguments import named_arguments
from pipeline.checksums import write_json
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values, write_text_atomically, writing
from pipeline.memory import keep_freed_memory
from pipeline.terminal import log_to_stderr
from train import distributed
from train.checkpoints import run_directory
from train.checkpoints.checkpoint_store import Checkpoints, has_checkpoint, last_step
from train.checkpoints.run_directory import REPORT_NAME, resume_position
from train.dry_run import examine
from train.end_of_run import conclude, reported
from train.flags import Flags, check_flags, parse_flags
from train.metrics.metrics_log import MetricsLog
from train.metrics.throughput import Meter
from train.metrics.validation_files import EPISODE_NAME, drop_validation
from train.metrics.wandb_log import Tracking
from train.octo.released.weight_loading import merge
from train.octo.released.weights_report import LoadReport
from train.overview import DESCRIPTION_NAME, describe_end, describe_fully, describe_start
from train.preemption import StopRequests
from train.run_directory.run_description import (
    ENVIRONMENT_NAME,
    describe_environment,
    describe_short_warmup,
)
from train.run_plan import Setup, allowed, keep_compiled, set_up
from train.run_resources import open_inputs
from train.train_config import TrainConfig
from train.training_loop import Loop, Stopped
from train.update.optimizer import split_frozen
from train.update.train_state import TrainState, fresh_state

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
        tells = distributed.is_writer() and not flags.dry_run
        level = logging.INFO if tells else logging.WARNING
        for package in ("train", "pipeline"):
            logging.getLogger(package).setLevel(level)
        if flags.dry_run:
            # `examine` returns the exit status: a dry run reports problems and raises none.
            raise SystemExit(examine(flags))
        try:
            run(flags)
        except Stopped as stopped:
            if stopped.by is signal.SIGINT:
                # Stopped by Ctrl-C the run ends like any interrupted command, with the exit status
                # of one.
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
    config = flags.config
    check_flags(flags)
    keep_compiled(config)
    # From here on SIGTERM is only recorded, so that the loop can save; Ctrl-C still ends the run.
    with StopRequests() as stop_requests:
        # Every process plans; an error in one is raised in all, so nobody waits for the others.
        plan = distributed.together(lambda: _plan(flags))
        _check_alike(plan)
        # Nothing in the directory is changed before this line.
        with _claimed(flags, plan) as path:
            distributed.together(lambda: _explain(flags, plan, path))
            _train(plan, path, stop_requests)
    # After the claim is released: the summary only reads.
    if distributed.is_writer():
        with reported("the summary", path):
            _log.info("%s", describe_end(path))
    return path


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything known about a run before its directory is changed."""

    setup: Setup
    """The set-up run."""
    report: LoadReport | None
    """Report on the pretrained weights; None: no weights are loaded."""
    position: int | None
    """Training steps taken by the run that is resumed; None: a new run."""


def _plan(flags: Flags) -> _Plan:
    config = flags.config
    run_directory.check(config, resume=flags.resume, overwrite=flags.overwrite)
    continues = flags.resume and has_checkpoint(pathlib.Path(config.save_dir))
    # A run killed before its first checkpoint is started again, not refused.
    if flags.resume and not continues:
        _log.warning("%s has no checkpoint yet: the run starts from scratch", config.save_dir)
    # A resumed run has its own weights; the pretrained ones may be gone by then.
    setup = set_up(config, open_inputs(config, resume=continues))
    position = None
    if continues:
        position = resume_position(config, setup.loader, new_mixture=flags.new_mixture)
    return _Plan(setup, setup.account(), position)


def _check_alike(plan: _Plan) -> None:
    """Raises an error if processes would train on different states or batches."""
    config, loader = plan.setup.config, plan.setup.loader
    settings = to_json_values(config)
    for name in ("save_dir", "compilation_cache", "pretrained_path", "data"):
        del settings[name]  # paths may differ between hosts
    mixture = [(part.data, part.settings, part.excluded) for part in loader.state(0).mixture]
    for what, text, found in (
        # Not the paths of the mixture: a host may mount the data elsewhere.
        ("config and data", dump_json([settings, loader.fingerprint, mixture]), "others"),
        ("last checkpoint", str(plan.position), f"step {plan.position}"),
    ):
        error = UserError(
            where=f"save_dir {config.save_dir}",
            expected=f"the {what} of process 0",
            found=found,
            remedy="Give the same command on every host, with a save_dir that all of them share.",
        )
        distributed.check_alike(text, error)


def _train(plan: _Plan, path: pathlib.Path, stop_requests: StopRequests) -> None:
    """Trains in a run directory, from the start or from a position."""
    setup, position, config = plan.setup, plan.position, plan.setup.config
    _log.info("compiling the training step")
    train_step, seconds = setup.compile()
    _log.info("compiled in %.1f s", seconds)
    # From here on a first Ctrl-C waits for the next step, and the state is saved: programs run on
    # the devices in the background, and an interpreter that ends under them may crash.
    stop_requests.note_ctrl_c()
    with (
        _log_stop(),
        Checkpoints(path, config.keep_checkpoints, config.keep_every) as checkpoints,
    ):
        if position is not None:
            # Restored right into the shapes and shardings of the compiled step.
            state = checkpoints.restore(setup.state)
            _log.info("resumed at step %d", position)
        else:
            state = _first_state(setup)
        # A frozen encoder runs once per instruction of the run, not once per training step.
        language_table = setup.encode_language(state.params)
        with _metrics_log(setup, path, position or 0) as log:
            loop = Loop(setup, train_step, language_table, checkpoints, log, path, stop_requests)
            # A resumed state is the last checkpoint, and is not saved again.
            state = loop.run(state, is_saved=position is not None)
    # After the block: the last checkpoint is on disk, and the metrics log is closed.
    conclude(setup, state, language_table, path)


@contextlib.contextmanager
def _log_stop() -> Iterator[None]:
    """Logs that the run was stopped, once the block has written the last checkpoint."""
    try:
        yield
    except Stopped as stopped:
        by = stopped.by.name if stopped.by else "another process"
        # Behind the block that closes the checkpoints: only now "saved" is true.
        _log.warning("stopped by %s; the state is saved: %s", by, stopped.way_on)
        raise


def _first_state(setup: Setup) -> TrainState:
    """Returns a fresh state, with random parameters or, where given, pretrained ones."""
    config = setup.config
    state = fresh_state(config, setup.optimizer, setup.shardings)
    if setup.inputs.weights is None:
        return state
    # The report was made before, from shapes alone.
    params, _ = merge(state.params, setup.inputs.weights, allowed(config))

    def place(leaf: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        return leaf if leaf.sharding == sharding else jax.device_put(np.asarray(leaf), sharding)

    params = jax.tree.map(place, params, setup.shardings.params)
    trained, _ = split_frozen(params, config.frozen)
    # A copy: the training step donates its input, and two leaves must not share memory.
    ema = {path: jnp.copy(trained[path]) for path in state.ema}
    return dataclasses.replace(state, params=params, ema=ema)


@contextlib.contextmanager
def _claimed(flags: Flags, plan: _Plan) -> Iterator[pathlib.Path]:
    """Claims the run directory in one process, for all processes."""
    path = pathlib.Path(flags.config.save_dir)
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            # Every process calls this, one claims: a failure is then raised in all by `together`.
            if not distributed.is_writer():
                return
            stack.enter_context(
                run_directory.claimed(flags.config, resume=flags.resume, overwrite=flags.overwrite)
            )
            # Between the plan and the claim another process may have trained on.
            if flags.resume and last_step(path) != plan.position:
                raise UserError(
                    where=f"save_dir {path}",
                    expected=f"a run whose last checkpoint is of step {plan.position}",
                    found=f"one of step {last_step(path)}, which another process has just written",
                    remedy="Run the same command again.",
                )
            for name in (REPORT_NAME, EPISODE_NAME):  # they no longer describe the whole run
                (path / name).unlink(missing_ok=True)

        distributed.together(claim)
        yield path


@contextlib.contextmanager
def _metrics_log(setup: Setup, path: pathlib.Path, position: int) -> Iterator[MetricsLog | None]:
    """Opens the metrics log; gives None in processes that do not write."""
    config = setup.config

    def open_log() -> MetricsLog | None:
        if not distributed.is_writer():
            return None
        # Rows after the checkpoint belong to steps that are taken again.
        drop_validation(path, after=position)
        tracking = Tracking(config, path) if config.wandb.project else None
        meter = Meter(config.batch_size, setup.loader.memory.batch_bytes)
        return MetricsLog(path, config.num_steps, meter, position, tracking)

    # None on the hosts that do not write.
    with distributed.together(open_log) or contextlib.nullcontext() as log:
        yield log


def _write(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    if distributed.is_writer():
        with writing(path):
            write_json(path, values)


def _explain(flags: Flags, plan: _Plan, path: pathlib.Path) -> None:
    """Logs and saves the resolved config, data, weights and environment of the run."""
    setup = plan.setup
    loader = setup.loader
    if plan.report is not None:
        _write(path / "load_report.json", to_json_values(plan.report))
    _write(path / "datasets.json", loader.describe_datasets())
    _write(path / ENVIRONMENT_NAME, describe_environment(setup.mesh))
    description = describe_fully(flags, setup)
    if distributed.is_writer():
        # Atomically, since another command may read the directory while the run starts.
        with writing(path / DESCRIPTION_NAME):
            write_text_atomically(path / DESCRIPTION_NAME, description)
    if flags.verbose:
        _log.info("%s", description)
    _log.info("%s", describe_start(flags, setup, plan.report, plan.position))
    short_warmup = describe_short_warmup(setup.config)
    if short_warmup is not None:
        _log.warning("%s", short_warmup)


if __name__ == "__main__":
    main()
