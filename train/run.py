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
from pipeline.dataset import Dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values, write_text_atomically
from pipeline.loader import LoadedBatch, Loader
from pipeline.memory import keep_freed_memory
from train import directory
from train.checkpoints import Checkpoints
from train.config import Flags, TrainConfig, parse_flags
from train.inputs import open_inputs
from train.logging import MetricsLog, StepMetrics
from train.octo.pretrained import account, merge
from train.optimizer import learning_rate, make_optimizer
from train.state import TrainState, count_parameters, init_state
from train.step import TrainStep, make_train_step

_log = logging.getLogger("train.run")


def main() -> None:
    """Parses the command line and runs."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    for package in ("train", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    keep_freed_memory()
    with user_errors_exit(debug="--debug" in sys.argv[1:]):
        run(parse_flags(sys.argv[1:]))


def run(flags: Flags) -> pathlib.Path:
    """Trains, and returns the run directory.

    Everything that can be checked without compiling is checked before the directory is touched.

    Raises:
      UserError: Anything that a person can mend.
    """
    config = flags.config
    directory.check(config, resume=flags.resume, overwrite=flags.overwrite)
    inputs = open_inputs(config, resume=flags.resume)
    loader = Loader(config.data, config.batch_size, inputs.datasets, inputs.vocabulary)
    mesh = device.data_mesh()
    sharding = device.batch_sharding(mesh, config.batch_size)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    schedule = learning_rate(config.optimizer, config.num_steps)
    step = make_train_step(config.model, optimizer, schedule, config.seed)
    structs = _state_structs(config, optimizer, device.replicated(mesh))
    batch_structs = device.shape_structs(loader.spec, sharding)
    jax.eval_shape(step, structs, batch_structs)
    if inputs.weights is not None:
        account(structs.params, inputs.weights, config.pretrained_differs)
    position = _resume_position(config, loader) if flags.resume else 0
    path = directory.prepare(config, resume=flags.resume)
    _explain(config, loader, path, structs)
    train_step = _compile(step, structs, batch_structs)
    with Checkpoints(path, config.keep_checkpoints) as checkpoints:
        if flags.resume:
            state = checkpoints.restore(structs)
            _log.info("resumed at step %d", position)
        else:
            state = _fresh_state(config, optimizer, structs)
            if inputs.weights is not None:
                state = _place_weights(config, state, inputs.weights, path)
        with (
            contextlib.closing(loader.batches(position)) as batches,
            MetricsLog(path, config.num_steps, position) as log,
        ):
            on_device = device.one_ahead(batches, sharding)
            for trained in _train(config, train_step, state, on_device, log):
                checkpoints.save(trained, loader.state(int(trained.step)))
    _log.info("run directory: %s", path)
    return path


def _resume_position(config: TrainConfig, loader: Loader) -> int:
    """Batches used by the last checkpoint of the run, if it is of this config and data."""
    with Checkpoints(pathlib.Path(config.save_dir), config.keep_checkpoints) as checkpoints:
        position = loader.restore(checkpoints.loader_state())
    if position >= config.num_steps:
        raise UserError(
            where=f"save_dir {config.save_dir}",
            expected=f"a run of fewer than {config.num_steps} steps",
            found=f"one of {position}",
            remedy="It is complete; to go on, raise --config.num_steps.",
        )
    return position


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
    step: TrainStep, state_structs: TrainState, batch_structs: dict[str, Any]
) -> TrainStep:
    """The step, compiled for exactly these shapes before a batch is read."""
    _log.info("compiling the step")
    started = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=state_structs.step.sharding)
    compiled = jitted.lower(state_structs, batch_structs).compile()
    _log.info("compiled in %.1f s", time.perf_counter() - started)
    return compiled


def _fresh_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, structs: TrainState
) -> TrainState:
    """Random parameters, placed as `structs` says."""
    # It runs once: on a CPU, 8 s of compilation become 4.
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(
        lambda: init_state(config.model, optimizer, config.seed),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, structs),
        compiler_options=quickly,
    )
    return init()


def _place_weights(
    config: TrainConfig, state: TrainState, weights: dict[str, Any], path: pathlib.Path
) -> TrainState:
    """The state with the pretrained weights in their places, and an account of them on disk."""
    params, report = merge(state.params, weights, config.pretrained_differs)
    write_text_atomically(path / "load_report.json", dump_json(to_json_values(report)))
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
      UserError: Where the loss or the gradient is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    log.write(
        StepMetrics(
            step=step, step_s=step_s, data_wait_s=wait_s, batch_fingerprint=fingerprint, **values
        )
    )
    if not math.isfinite(values["loss"] + values["grad_norm"]):
        raise UserError(
            where=f"step {step}, batch {fingerprint}",
            expected="a finite loss and gradient",
            found=f"loss {values['loss']}, grad_norm {values['grad_norm']}",
            remedy="Start a new run with a lower optimizer.learning_rate.",
        )


def _explain(config: TrainConfig, loader: Loader, path: pathlib.Path, structs: TrainState) -> None:
    """Says and saves what the run is made of."""
    kept = {dataset.path: _identity(dataset) for dataset in loader.datasets}
    write_text_atomically(path / "datasets.json", dump_json(kept))
    for dataset in loader.datasets:
        _log.info(
            "dataset %s: %d episodes, %d steps, %d tasks, digest %s",
            dataset.path,
            dataset.num_episodes,
            dataset.num_steps,
            len(dataset.manifest.tasks),
            dataset.manifest.digest(),
        )
    for text in loader.tasks.truncated:
        _log.info("instruction cut to %d tokens: %s", config.data.max_text_length, text)
    _log.info("batch:\n%s", table(loader.spec))
    _log.info("devices: %d x %s", jax.device_count(), jax.devices()[0].device_kind)
    _log.info("parameters: %s", f"{count_parameters(structs.params):,}")


def _identity(dataset: Dataset) -> dict[str, Any]:
    """What a policy needs to know of the data that it was trained on."""
    return {
        "name": dataset.manifest.name,
        "digest": dataset.manifest.digest(),
        "schema_hash": dataset.manifest.schema.hash(),
        "conventions": to_json_values(dataset.manifest.conventions),
        "statistics": {key: value.to_json() for key, value in dataset.statistics.items()},
    }


if __name__ == "__main__":
    main()
