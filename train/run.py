"""`python -m train.run --config FILE[:VARIANT]`: finetunes Octo."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import optax

from pipeline import device
from pipeline.batch import table
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values, write_text_atomically
from pipeline.loader import LoadedBatch, Loader
from train.checkpoints import Checkpoints, count_parameters
from train.config import Flags, TrainConfig, parse_flags
from train.directory import prepare
from train.inputs import open_inputs
from train.logging import MetricsLog, StepMetrics
from train.octo.pretrained import account, merge
from train.optimizer import learning_rate, make_optimizer
from train.state import TrainState, init_state
from train.step import TrainStep, make_train_step

_log = logging.getLogger("train.run")


def main() -> None:
    """Parses the command line and runs."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    for package in ("train", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    with user_errors_exit(debug="--debug" in sys.argv[1:]):
        run(parse_flags(sys.argv[1:]))


def run(flags: Flags) -> pathlib.Path:
    """Trains, and returns the run directory.

    Everything that can be checked without compiling is checked before the directory is touched.

    Raises:
      UserError: Anything that a person can mend.
    """
    config = flags.config
    inputs = open_inputs(config)
    loader = Loader(config.data, config.batch_size, inputs.datasets, inputs.vocabulary)
    mesh = device.data_mesh()
    sharding = device.batch_sharding(mesh, config.batch_size)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    structs = _state_structs(config, optimizer, device.replicated(mesh))
    if inputs.weights is not None:
        account(structs.params, inputs.weights, config.pretrained_differs)
    directory = prepare(config, resume=flags.resume, overwrite=flags.overwrite)
    with Checkpoints(directory) as checkpoints:
        position = loader.restore(checkpoints.loader_state()) if flags.resume else 0
        _explain(config, loader, directory, structs)
        train_step = _compile(
            config, optimizer, structs, device.shape_structs(loader.spec, sharding)
        )
        if flags.resume:
            state = checkpoints.restore(structs)
            _log.info("resumed at step %d", position)
        else:
            state = _fresh_state(config, optimizer, structs)
            if inputs.weights is not None:
                state = _place_weights(config, state, inputs.weights, directory)
        with (
            contextlib.closing(loader.batches(position)) as batches,
            MetricsLog(directory, config.num_steps, position) as log,
        ):
            on_device = device.one_ahead(batches, sharding)
            for trained in _train(config, train_step, state, on_device, log):
                checkpoints.save(trained, loader.state(int(trained.step)))
    _log.info("run directory: %s", directory)
    return directory


def _state_structs(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.NamedSharding,
) -> TrainState:
    """Shape, dtype and sharding of every array of the state; nothing is computed."""
    shapes = jax.eval_shape(lambda: init_state(config.model, optimizer, config.seed))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def _compile(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state_structs: TrainState,
    batch_structs: dict[str, Any],
) -> TrainStep:
    """The step, compiled for exactly these shapes before a batch is read."""
    _log.info("compiling the step")
    started = time.perf_counter()
    schedule = learning_rate(config.optimizer, config.num_steps)
    step = make_train_step(config.model, optimizer, schedule, config.seed)
    replicated = state_structs.step.sharding
    jitted = jax.jit(step, donate_argnums=0, out_shardings=replicated)
    compiled = jitted.lower(state_structs, batch_structs).compile()
    _log.info("compiled in %.1f s", time.perf_counter() - started)
    return compiled


def _fresh_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, structs: TrainState
) -> TrainState:
    """Random parameters, placed as `structs` says."""
    init = jax.jit(
        lambda: init_state(config.model, optimizer, config.seed),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, structs),
        compiler_options={"xla_backend_optimization_level": 0},  # runs once: 8 s become 4
    )
    return init()


def _place_weights(
    config: TrainConfig, state: TrainState, weights: dict[str, Any], directory: pathlib.Path
) -> TrainState:
    """The state with the pretrained weights in their places, and an account of them on disk."""
    params, report = merge(state.params, weights, config.pretrained_differs)
    write_text_atomically(directory / "load_report.json", dump_json(to_json_values(report)))
    _log.info("weights of %s: %s", config.pretrained_path, report.summary())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    return dataclasses.replace(state, params=jax.device_put(params, shardings))


def _train(
    config: TrainConfig,
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[tuple[dict[str, Any], LoadedBatch]],
    log: MetricsLog,
) -> Iterator[TrainState]:
    """Yields the state whenever it is to be saved.

    A step's metrics are read while the next one computes, but before its state is saved: a state
    that follows a loss which is not finite never becomes a checkpoint.
    """
    unread = None
    before = time.perf_counter()
    for step in range(int(state.step) + 1, config.num_steps + 1):
        asked = time.perf_counter()
        arrays, batch = next(batches)
        wait_s = time.perf_counter() - asked
        state, metrics = train_step(state, arrays)
        if unread is not None:
            _write(log, *unread)
        now = time.perf_counter()
        unread = (step, metrics, now - before, wait_s, batch.fingerprint)
        before = now
        if step % config.save_interval == 0 or step == config.num_steps:
            _write(log, *unread)
            unread = None
            yield state


def _write(
    log: MetricsLog,
    step: int,
    metrics: dict[str, jax.Array],
    step_s: float,
    wait_s: float,
    fingerprint: str,
) -> None:
    """Waits for a step's metrics and writes them.

    Raises:
      UserError: Where the loss is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    log.write(
        StepMetrics(
            step=step, step_s=step_s, data_wait_s=wait_s, batch_fingerprint=fingerprint, **values
        )
    )
    if not math.isfinite(values["loss"]):
        raise UserError(
            where=f"step {step}, batch {fingerprint}",
            expected="a finite loss",
            found=str(values["loss"]),
            remedy="Resume from the last checkpoint with a lower optimizer.learning_rate.",
        )


def _explain(
    config: TrainConfig, loader: Loader, directory: pathlib.Path, structs: TrainState
) -> None:
    """Says and saves what the run is made of."""
    kept = {
        dataset.path: {key: value.to_json() for key, value in dataset.statistics.items()}
        for dataset in loader.datasets
    }
    write_text_atomically(directory / "statistics.json", dump_json(kept))
    for dataset in loader.datasets:
        _log.info(
            "dataset %s: %d episodes, %d steps, %d tasks, digest %s",
            dataset.path,
            dataset.num_episodes,
            dataset.num_steps,
            len(dataset.manifest.tasks),
            dataset.manifest.digest,
        )
    for text in loader.tasks.truncated:
        _log.info("instruction cut to %d tokens: %s", config.data.max_text_length, text)
    _log.info("batch:\n%s", table(loader.spec))
    _log.info("devices: %d x %s", jax.device_count(), jax.devices()[0].device_kind)
    _log.info("parameters: %s", f"{count_parameters(structs.params):,}")


if __name__ == "__main__":
    main()
