"""`python -m train.run --config FILE[:VARIANT]`: finetunes Octo."""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pipeline.batch import table
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values, write_text_atomically
from pipeline.memory import keep_freed_memory
from pipeline.meter import Meter
from pipeline.tokens import check_same_encoders
from train import cluster, directory
from train.checkpoints import Checkpoints, has_checkpoint, read_datasets
from train.config import Flags, TrainConfig, check_flags, parse_flags
from train.describe import describe_config, describe_devices
from train.doctor import examine
from train.inputs import open_inputs
from train.interrupt import StopRequests
from train.logging import MetricsLog
from train.loop import Loop, Stopped
from train.octo.picture import draw_parameters, draw_tokens
from train.octo.pretrained import merge
from train.optimizer import split_frozen
from train.report import write_report
from train.setup import Setup, allowed, set_up
from train.state import TrainState, averaged_params, count_parameters, fresh_state
from train.tracking import Tracking

_log = logging.getLogger("train.run")
_INTERRUPTED = "interrupted; the same command with --resume goes on from the last checkpoint"


def main() -> None:
    """Parses the command line and runs."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    keep_freed_memory()
    with user_errors_exit(debug="--debug" in sys.argv[1:], interrupted=_INTERRUPTED):
        flags = parse_flags(sys.argv[1:])
        cluster.join()
        tells = cluster.is_writer() and not flags.dry_run
        level = logging.INFO if tells else logging.WARNING
        for package in ("train", "pipeline"):
            logging.getLogger(package).setLevel(level)
        if flags.dry_run:
            raise SystemExit(examine(flags))
        try:
            run(flags)
        except Stopped as stopped:
            if stopped.by is signal.SIGINT:
                raise KeyboardInterrupt from None


def run(flags: Flags) -> pathlib.Path:
    """Trains, and returns the run directory.

    Everything that can be checked without compiling is checked before the directory is touched.

    Raises:
      UserError: Anything that a person can mend.
      Stopped: A signal asked for it; the state is saved.
    """
    config = flags.config
    check_flags(flags)
    _keep_compiled(config)
    with StopRequests() as requests:
        directory.check(config, resume=flags.resume, overwrite=flags.overwrite)
        goes_on = flags.resume and has_checkpoint(pathlib.Path(config.save_dir))
        if flags.resume and not goes_on:
            _log.warning("%s has no checkpoint yet: the run begins anew", config.save_dir)
        setup = set_up(config, open_inputs(config, resume=goes_on))
        report = setup.account()
        position = _resume_position(flags, setup) if goes_on else None
        with _claimed(config, resume=flags.resume) as path:
            if report is not None:
                text = dump_json(to_json_values(report))
                _write(path / "load_report.json", text)
                _log.info("weights of %s: %s", config.pretrained_path, report.summary())
            _explain(flags, setup, path)
            _train(setup, path, position, requests)
    _log.info("run directory: %s", path)
    return path


def _train(setup: Setup, path: pathlib.Path, position: int | None, requests: StopRequests) -> None:
    """Trains in a run directory, from a position or from the start."""
    config = setup.config
    _log.info("compiling the step")
    train_step, seconds = setup.compile()
    _log.info("compiled in %.1f s", seconds)
    with Checkpoints(path, config.keep_checkpoints, config.keep_every) as checkpoints:
        if position is not None:
            state = checkpoints.restore(setup.state)
            _log.info("resumed at step %d", position)
        else:
            state = _first_state(setup)
        language_table = setup.encode_language(state.params)
        requests.note_ctrl_c()
        with _metrics_log(setup, path, position or 0) as log:
            loop = Loop(setup, train_step, language_table, checkpoints, log, path, requests)
            try:
                state = loop.run(state, is_saved=position is not None)
            except Stopped as stopped:
                by = stopped.by.name if stopped.by else "another process"
                _log.warning("stopped by %s; the state is saved: go on with --resume", by)
                raise
        if setup.validator is not None:
            params = averaged_params(state.params, state.ema, config.frozen)
            episode = setup.validator.episode(params, language_table)
            if cluster.is_writer():
                episode.save(path)
    if cluster.is_writer():
        _log.info("report: %s", write_report(path))


def _resume_position(flags: Flags, setup: Setup) -> int:
    """Batches used by the last checkpoint of the run, if it is of this config and data."""
    config = flags.config
    kept = read_datasets(pathlib.Path(config.save_dir))
    check_same_encoders(kept, setup.loader.describe_datasets())
    with Checkpoints(pathlib.Path(config.save_dir)) as checkpoints:
        state = checkpoints.loader_state()
        position = setup.loader.restore(state, new_mixture=flags.new_mixture)
    if position >= config.num_steps:
        raise UserError(
            where=f"save_dir {config.save_dir}",
            expected=f"a run of fewer than {config.num_steps} steps",
            found=f"one of {position}",
            remedy="It is complete; to go on, raise --config.num_steps.",
        )
    return position


def _first_state(setup: Setup) -> TrainState:
    """Random parameters, with the pretrained ones in their places."""
    config = setup.config
    state = fresh_state(config, setup.optimizer, setup.shardings)
    if setup.inputs.weights is None:
        return state
    params, _ = merge(state.params, setup.inputs.weights, allowed(config))

    def place(leaf: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        return leaf if leaf.sharding == sharding else jax.device_put(np.asarray(leaf), sharding)

    params = jax.tree.map(place, params, setup.shardings.params)
    trained, _ = split_frozen(params, config.frozen)
    ema = {path: jnp.copy(trained[path]) for path in state.ema}
    return dataclasses.replace(state, params=params, ema=ema)


@contextlib.contextmanager
def _claimed(config: TrainConfig, *, resume: bool) -> Iterator[pathlib.Path]:
    """The run's directory, made by one process for all once each has checked it."""
    cluster.wait_for_all("checks")
    if cluster.is_writer():
        with directory.claimed(config, resume=resume) as path:
            cluster.wait_for_all("run directory")
            yield path
    else:
        cluster.wait_for_all("run directory")
        yield pathlib.Path(config.save_dir)


@contextlib.contextmanager
def _metrics_log(setup: Setup, path: pathlib.Path, position: int) -> Iterator[MetricsLog | None]:
    """Where metrics go; nowhere in processes that do not write."""
    if not cluster.is_writer():
        yield None
        return
    config = setup.config
    tracking = Tracking(config, path) if config.wandb.project else None
    meter = Meter(config.batch_size, setup.loader.memory.batch_bytes)
    with MetricsLog(path, config.num_steps, meter, position, tracking) as log:
        yield log


def _keep_compiled(config: TrainConfig) -> None:
    """Takes programs that an earlier run compiled, and keeps those of this one."""
    if config.compilation_cache is None:
        return
    cache = pathlib.Path(config.compilation_cache).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _write(path: pathlib.Path, text: str) -> None:
    if cluster.is_writer():
        write_text_atomically(path, text)


def _explain(flags: Flags, setup: Setup, path: pathlib.Path) -> None:
    """Says and saves what the run is made of."""
    config, loader = setup.config, setup.loader
    _write(path / "datasets.json", dump_json(loader.describe_datasets()))
    _log.info("config (* set by a flag):\n%s", describe_config(config, flags.unchanged))
    for dataset in loader.datasets:
        _log.info(
            "dataset %s: %d episodes, %d steps, %d tasks, digest %s",
            dataset.path,
            dataset.num_episodes,
            dataset.num_steps,
            len(dataset.manifest.tasks),
            dataset.manifest.digest(),
        )
    for part in loader.state(0).mixture:
        _log.info("sampled from %s: %d steps, %.1f%%", part.path, part.steps, 100 * part.share)
    for path_and_file in (f"{d.path}: {r}" for d in config.data.datasets for r in d.excluded):
        _log.info("excluded from %s", path_and_file)
    for text in loader.tasks.truncated:
        _log.info("instruction cut to %d tokens: %s", config.data.max_text_length, text)
    _log.info("batch:\n%s", table(loader.spec))
    _log.info("memory of the loader: %s", loader.memory)
    _log.info("devices: %s", describe_devices(setup.mesh))
    _log.info("model: %s", draw_tokens(config.model, config.data.window_size))
    _, held = split_frozen(setup.state.params, config.frozen)
    _log.info(
        "parameters: %s, of which %s are frozen",
        f"{count_parameters(setup.state.params):,}",
        f"{count_parameters(held):,}",
    )
    _log.info("%s", draw_parameters(setup.state.params))


if __name__ == "__main__":
    main()
