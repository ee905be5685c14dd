"""Times training steps of an Octo in several variants and batch sizes, in one process.

All programs are compiled at the same time, then run in the order of the memory that XLA planned: so
the device's peak memory after each is its own. Batches are random numbers of the loader's shapes.
"""

import concurrent.futures
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measuring
from benchmarks.accelerator.measured_cases import TOKENS, Sizes
from benchmarks.accelerator.model_flops import training_flops
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.device import peak_bytes
from train.run_setup import Setup, keep_compiled, open_inputs, set_up
from train.train_config import OptimizerConfig, TrainConfig
from train.update.train_state import TrainState

_VOCABULARY = "tests/data/vocabulary.model"
WINDOW = 2
"""Environment steps in the window."""
_MOST_SECONDS = 6.0
"""Rounds end after this time."""
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@dataclasses.dataclass(frozen=True)
class StepCase:
    """A model as it is trained."""

    model: str
    """Name of the model."""
    num_tokens: int
    """Geometry tokens per step; 0: none."""
    variant: str
    """`plain`, `remat`, `fused` or `fused_remat`."""

    @property
    def name(self) -> str:
        """Returns such as `step:small:0:plain`."""
        return f"step:{self.model}:{self.num_tokens}:{self.variant}"


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things are on this machine."""

    dataset: str
    """Converted dataset."""
    tokens_dataset: str
    """The same with geometry tokens."""
    work: str
    """Folder for what is deleted at the end."""
    compilation_cache: str | None
    """Folder of compiled programs; None: none are kept."""


def make_config(case: StepCase, sizes: Sizes, places: Places, batch_size: int) -> TrainConfig:
    """Returns the config of a run from random weights, which change no time."""
    vggt = sizes.tokens if case.num_tokens else None
    model = dataclasses.replace(
        sizes.models[case.model],
        vggt=vggt,
        compute_dtype="bfloat16",
        remat=case.variant.endswith("remat"),
        attention="fused" if case.variant.startswith("fused") else "full",
    )
    data = DataConfig(
        (DatasetConfig(places.tokens_dataset if vggt else places.dataset),),
        _VOCABULARY,
        observations=(*model.image_shapes, *([TOKENS] if vggt else [])),
        window_size=WINDOW,
        num_threads=sizes.num_threads,
        prefetch_batches=sizes.prefetch_batches,
    )
    num_steps = sizes.first_steps + sizes.run_steps
    return TrainConfig(
        data=data,
        model=model,
        # The same schedule in all cases: it is part of the program.
        optimizer=OptimizerConfig(warmup_steps=1, decay_steps=50_000),
        batch_size=batch_size,
        num_steps=num_steps,
        save_interval=num_steps,
        save_dir=f"{places.work}/run_{case.num_tokens}",
        compilation_cache=places.compilation_cache,
    )


def time_steps(
    cases: list[tuple[StepCase, int]], sizes: Sizes, places: Places
) -> Iterator[dict[str, Any]]:
    """Yields the figures of each case at its batch size.

    Args:
      cases: Cases of one model and one number of tokens, with batch sizes.
      sizes: Sizes of all measurements.
      places: Where things are on this machine.
    """
    setups = []
    for case, batch_size in cases:
        config = make_config(case, sizes, places, batch_size)
        keep_compiled(config)
        setups.append(set_up(config, open_inputs(config)))
    with concurrent.futures.ThreadPoolExecutor(len(setups)) as pool:
        programs = [pool.submit(_compile, setup) for setup in setups]
        # Meanwhile; the state and the table are those of all cases.
        state = random_state(setups[0])
        table = setups[0].encode_language(state.params)
    # All are compiled, so that nothing else is at work while a step is timed.
    order = sorted(range(len(cases)), key=lambda index: _planned_gb(programs[index]))
    for index in order:
        (case, batch_size), setup = cases[index], setups[index]
        figures: dict[str, Any] = {
            "measurement": f"{case.name}@{batch_size}",
            **dataclasses.asdict(case),
            "batch_size": batch_size,
            "window": WINDOW,
            "estimated_gb": round(setup.estimate_memory().total / 1e9, 3),
        }
        try:
            program, compiled = programs[index].result()
            figures |= compiled
            state, timed = _time(program, setup, state, table, sizes)
        except Exception as error:
            # Other errors are bugs, and end the case.
            if not any(text in str(error) for text in _OUT_OF_MEMORY):
                raise
            yield figures | {"failed": "out of memory"}
            del state  # it was donated
            state = random_state(setup)
            continue
        yield figures | timed


def _planned_gb(program: concurrent.futures.Future[tuple[Any, dict[str, Any]]]) -> float:
    """Returns the memory that XLA planned; infinite if it could not be compiled."""
    if program.exception() is not None:
        return math.inf
    return program.result()[1].get("planned_gb", 0.0)


def _compile(setup: Setup) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Returns the program of a training step, and what is known without running it."""
    lowered, _, trace_s = measuring.timed(setup.lower)
    compiled, _, compile_s = measuring.timed(lowered.compile)
    config = setup.config
    flops = config.batch_size * training_flops(config.model, WINDOW)
    counted = (lowered.cost_analysis() or {}).get("flops", 0.0)
    return compiled, {
        "trace_s": round(trace_s, 1),
        "compile_s": round(compile_s, 1),
        "model_gflop": round(flops / 1e9, 3),
        "xla_gflop": round(counted / 1e9, 3),
        **_planned(compiled),
    }


def _planned(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the memory that XLA planned, where the backend reports it."""
    memory = compiled.memory_analysis()
    if memory is None:
        return {}
    # The new state lies where the old one was.
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"planned_gb": round((kept + memory.temp_size_in_bytes) / 1e9, 3)}


def _time(
    program: jax.stages.Compiled, setup: Setup, state: Any, table: Any, sizes: Sizes
) -> tuple[Any, dict[str, Any]]:
    """Returns the next state, and the time of a training step with what follows from it."""
    batch = random_batch(setup, seed=0)
    peak_before = peak_bytes()
    state, metrics = program(state, batch, table)  # the first call loads the program
    jax.block_until_ready(state)
    started, dispatched, rounds = time.perf_counter(), 0.0, []
    while len(rounds) < sizes.rounds and (
        not rounds or time.perf_counter() - started < _MOST_SECONDS
    ):
        round_s = time.perf_counter()
        for _ in range(sizes.timed_steps):
            state, metrics = program(state, batch, table)
        dispatched += time.perf_counter() - round_s
        jax.block_until_ready((state, metrics))
        rounds.append((time.perf_counter() - round_s) / sizes.timed_steps)
    step_s = statistics.median(rounds)
    flops = setup.config.batch_size * training_flops(setup.config.model, WINDOW)
    peak = peak_bytes()
    return state, {
        "step_ms": round(1e3 * step_s, 3),
        "step_ms_min": round(1e3 * min(rounds), 3),
        "step_ms_max": round(1e3 * max(rounds), 3),
        # Until the host continues: large where the host, not the device, limits the rate.
        "dispatch_ms": round(1e3 * dispatched / len(rounds) / sizes.timed_steps, 3),
        "samples_s": round(setup.config.batch_size / step_s, 1),
        "model_tflop_s": round(flops / step_s / 1e12, 4),
        "peak_gb": round(peak / 1e9, 3),
        # Otherwise the peak is at most this: compiling or a larger batch took more before.
        "peak_is_of_this": peak > peak_before,
        "loss": round(float(metrics["loss"]), 4),
    }


def random_state(setup: Setup) -> TrainState:
    """Returns a state of random numbers, without the program that draws a run's first parameters.

    All arrays begin with the same numbers: drawing them is the time of the longest.
    """
    longest = max(leaf.size for leaf in jax.tree.leaves(setup.state.params))
    drawn = 0.02 * np.random.default_rng(0).standard_normal(longest, np.float32)

    def put(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_parameter = getattr(path[0], "name", "") in ("params", "ema")
        if not is_parameter:  # the optimizer's moments and counts
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        values = drawn[: leaf.size].reshape(leaf.shape)
        is_scale = "scale" in jax.tree_util.keystr(path[-1:])
        return jax.device_put(values + is_scale, leaf.sharding)

    return jax.tree_util.tree_map_with_path(put, setup.state)


def random_batch(setup: Setup, seed: int) -> dict[str, Any]:
    """Returns random numbers of the shapes of a batch on the devices; nothing is masked."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == np.uint8:
            values = rng.integers(0, 256, leaf.shape, np.uint8)
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            values = rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        else:  # masks are all True; indices and token ids are all 0
            values = np.full(leaf.shape, leaf.dtype == np.bool_, leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(draw, setup.batch)
