"""`python -m train.run --config FILE[:VARIANT]`: finetunes Octo."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from pipeline import device
from pipeline.batch import table
from pipeline.errors import RecordError, UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values, write_text_atomically
from pipeline.loader import LoadedBatch, Loader
from pipeline.memory import keep_freed_memory, release_freed_memory
from pipeline.meter import Meter
from pipeline.sampling import HostShard
from pipeline.text import TaskTable
from train import directory
from train.checkpoints import Checkpoints
from train.config import Flags, TrainConfig, parse_flags
from train.inputs import Inputs, open_inputs
from train.logging import MetricsLog, StepMetrics
from train.octo.picture import draw_parameters, draw_tokens
from train.octo.pretrained import Allowed, account, merge
from train.optimizer import learning_rate, make_optimizer
from train.state import TrainState, count_parameters, fresh_state, init_state
from train.step import (
    LanguageTable,
    Metrics,
    TrainStep,
    make_language_table,
    make_train_step,
)

_log = logging.getLogger("train.run")
_INTERRUPTED = "interrupted; the same command with --resume goes on from the last checkpoint"


def main() -> None:
    """Parses the command line and runs."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    for package in ("train", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    keep_freed_memory()
    with user_errors_exit(debug="--debug" in sys.argv[1:], interrupted=_INTERRUPTED):
        run(parse_flags(sys.argv[1:]))


def run(flags: Flags) -> pathlib.Path:
    """Trains, and returns the run directory.

    Everything that can be checked without compiling is checked before the directory is touched.

    Raises:
      UserError: Anything that a person can mend.
    """
    config = flags.config
    if flags.new_mixture and not flags.resume:
        raise UserError(
            where="command line",
            expected="--new_mixture with --resume",
            found="it alone",
            remedy="A new run needs no leave for its mixture: leave it out.",
        )
    directory.check(config, resume=flags.resume, overwrite=flags.overwrite)
    inputs = open_inputs(config, resume=flags.resume)
    mesh = device.data_mesh()
    sharding = device.batch_sharding(mesh, config.batch_size)
    loader = _make_loader(config, inputs, device.host_shard(sharding, config.batch_size))
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    schedule = learning_rate(config.optimizer, config.num_steps)
    step = make_train_step(config, optimizer, schedule)
    structs = _state_structs(config, optimizer, device.replicated(mesh))
    batch_structs = device.shape_structs(loader.spec, sharding)
    table_structs = _language_structs(config, structs, loader.tasks)
    jax.eval_shape(step, structs, batch_structs, table_structs)
    if inputs.weights is not None:
        account(structs.params, inputs.weights, _allowed(config))
    position = _resume_position(flags, loader) if flags.resume else 0
    path = directory.prepare(config, resume=flags.resume)
    _explain(config, loader, path, structs)
    train_step = _compile(step, structs, batch_structs, table_structs)
    with Checkpoints(path, config.keep_checkpoints) as checkpoints:
        if flags.resume:
            state = checkpoints.restore(structs)
            _log.info("resumed at step %d", position)
        else:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, structs)
            state = fresh_state(config.model, optimizer, config.seed, shardings)
            if inputs.weights is not None:
                state = _place_weights(config, state, inputs.weights, path)
        table = _encode_language(config, state, loader.tasks)
        with (
            contextlib.closing(loader.batches(position)) as batches,
            MetricsLog(path, config.num_steps, _meter(loader), position) as log,
        ):
            on_device = device.one_ahead(batches, sharding)
            for trained in _train(
                flags, lambda s, batch: train_step(s, batch, table), state, on_device, log
            ):
                kept = loader.state(int(trained.step))
                checkpoints.save(trained, kept, loader.describe_datasets())
    _log.info("run directory: %s", path)
    return path


def _make_loader(config: TrainConfig, inputs: Inputs, shard: HostShard) -> Loader:
    encode = inputs.vocabulary.EncodeAsIds
    try:
        return Loader(config.data, config.batch_size, inputs.datasets, encode, shard)
    except RecordError as error:
        raise _excludable(error, config) from error


def _resume_position(flags: Flags, loader: Loader) -> int:
    """Batches used by the last checkpoint of the run, if it is of this config and data."""
    config = flags.config
    with Checkpoints(pathlib.Path(config.save_dir), config.keep_checkpoints) as checkpoints:
        position = loader.restore(checkpoints.loader_state(), new_mixture=flags.new_mixture)
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


def _language_structs(
    config: TrainConfig, structs: TrainState, tasks: TaskTable
) -> jax.ShapeDtypeStruct | None:
    """Shape and sharding of the language table; nothing is computed."""
    shape = jax.eval_shape(
        lambda params: make_language_table(config.model, params, tasks), structs.params
    )
    sharding = structs.step.sharding
    return shape and jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _encode_language(config: TrainConfig, state: TrainState, tasks: TaskTable) -> LanguageTable:
    """What a frozen encoder gives for every instruction of the run, computed once."""
    encode = jax.jit(
        lambda params: make_language_table(config.model, params, tasks),
        out_shardings=state.step.sharding,
    )
    return encode(state.params)


def _compile(
    step: TrainStep,
    state_structs: TrainState,
    batch_structs: dict[str, Any],
    table_structs: jax.ShapeDtypeStruct | None,
) -> TrainStep:
    """The step, compiled for exactly these shapes before a batch is read."""
    _log.info("compiling the step")
    started = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=state_structs.step.sharding)
    compiled = jitted.lower(state_structs, batch_structs, table_structs).compile()
    _log.info("compiled in %.1f s", time.perf_counter() - started)
    release_freed_memory()
    return compiled


def _allowed(config: TrainConfig) -> Allowed:
    return Allowed(config.pretrained_differs, config.pretrained_resized)


def _place_weights(
    config: TrainConfig, state: TrainState, weights: dict[str, Any], path: pathlib.Path
) -> TrainState:
    """The state with the pretrained weights in their places, and an account of them on disk."""
    params, report = merge(state.params, weights, _allowed(config))
    write_text_atomically(path / "load_report.json", dump_json(to_json_values(report)))
    _log.info("weights of %s: %s", config.pretrained_path, report.summary())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    return dataclasses.replace(state, params=jax.device_put(params, shardings))


def _meter(loader: Loader) -> Meter:
    return Meter(loader.batch_size, loader.memory.batch_bytes)


def _train(
    flags: Flags,
    train_step: Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[tuple[dict[str, Any], LoadedBatch]],
    log: MetricsLog,
) -> Iterator[TrainState]:
    """Yields the state whenever it is to be saved.

    A step's metrics are read while the next one computes, but before its state is saved: a state
    that follows a loss which is not finite never becomes a checkpoint.

    Raises:
      UserError: Where a batch cannot be made, once the state before it has been yielded.
    """
    config, unread = flags.config, None
    saved = int(state.step) if flags.resume else None
    before = time.perf_counter()
    for step in range(int(state.step) + 1, config.num_steps + 1):
        asked = time.perf_counter()
        arrays = batch = None  # the memory of the batch before is free for the next one
        try:
            arrays, batch = next(batches)
        except UserError as error:
            if unread is not None:
                _write(log, *unread)
            if saved != step - 1:
                yield state
            raise _without_batch(error, config, step - 1) from error
        wait_s = time.perf_counter() - asked
        state, metrics = train_step(state, arrays)
        if unread is not None:
            _write(log, *unread)
        now = time.perf_counter()
        unread = (step, metrics, now - before, wait_s, batch.fingerprint)
        before = now
        if step % config.save_interval == 0 or step == config.num_steps:
            _write(log, *unread)
            unread, saved = None, step
            yield state


def _without_batch(error: UserError, config: TrainConfig, num_steps: int) -> UserError:
    """The error of a batch that cannot be made, with where the run stands and how it goes on."""
    saved = f"The run is saved at step {num_steps}: go on with --resume."
    remedy = f"{error.remedy} {saved}{_exclusion(error, config)}"
    return UserError(where=error.where, expected=error.expected, found=error.found, remedy=remedy)


def _excludable(error: UserError, config: TrainConfig) -> UserError:
    """The error, with the flags that go on without a damaged record."""
    remedy = error.remedy + _exclusion(error, config)
    return UserError(where=error.where, expected=error.expected, found=error.found, remedy=remedy)


def _exclusion(error: UserError, config: TrainConfig) -> str:
    """The flags that leave a damaged record out, in words; nothing for another error."""
    if not isinstance(error, RecordError):
        return ""
    flags = [
        f"--config.data.datasets.{number}.excluded "
        + " ".join(dict.fromkeys((*part.excluded, error.record)))
        for number, part in enumerate(config.data.datasets)
        if part.path == error.dataset
    ]
    return f" To go on without that record, add {' '.join(flags)}"


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
    write_text_atomically(path / "datasets.json", dump_json(loader.describe_datasets()))
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
    _log.info("devices: %d x %s", jax.device_count(), jax.devices()[0].device_kind)
    _log.info("model: %s", draw_tokens(config.model, config.data.window_size))
    _log.info("parameters: %s", f"{count_parameters(structs.params):,}")
    _log.info("%s", draw_parameters(structs.params))


if __name__ == "__main__":
    main()
