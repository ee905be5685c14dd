"""Repeats training steps to compare every bit, and reports which kernels take their time."""

import collections
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import xxhash

from benchmarks.accelerator.measured_cases import Sizes
from benchmarks.accelerator.train_steps import (
    Places,
    StepCase,
    make_config,
    random_batch,
    random_state,
)
from train.run_setup import Setup, keep_compiled, open_inputs, set_up

_NUM_BATCHES = 4
_PROFILED_STEPS = 3
_NUM_KERNELS = 12
_DEVICE_PLANE = "/device:"
_HOST_PLANE = "/host:CPU"


def measure_repeat(case: StepCase, sizes: Sizes, places: Places) -> Iterator[dict[str, Any]]:
    """Yields whether the same training steps give the same bits twice, and a profile of some."""
    config = make_config(case, sizes, places, sizes.run_batch)
    keep_compiled(config)
    setup = set_up(config, open_inputs(config))
    program = setup.compile()
    batches = [random_batch(setup, seed) for seed in range(_NUM_BATCHES)]
    found = [_train(setup, program, batches, sizes.num_repeated) for _ in range(2)]
    yield {
        "measurement": f"repeat:{case.variant}",
        "variant": case.variant,
        "batch_size": config.batch_size,
        "steps": sizes.num_repeated,
        "losses_identical": found[0][0] == found[1][0],
        "parameters_identical": found[0][1] == found[1][1],
        "last_loss": found[0][0][-1],
        "parameters_xxh3": found[0][1],
    }
    state = random_state(setup)
    table = setup.encode_language(state.params)
    yield {"measurement": f"profile:{case.variant}", **_profile(program, state, batches[0], table)}


def _train(
    setup: Setup, program: Any, batches: list[dict[str, Any]], num_steps: int
) -> tuple[list[float], str]:
    """Returns the losses, and the XXH3-128 of all parameters, after training from the start."""
    state = random_state(setup)
    table = setup.encode_language(state.params)
    losses = []
    for step in range(num_steps):
        state, metrics = program(state, batches[step % len(batches)], table)
        losses.append(metrics["loss"])
    digest = xxhash.xxh3_128()
    for leaf in jax.tree.leaves(state.params):
        digest.update(np.asarray(leaf).tobytes())
    return [float(loss) for loss in losses], digest.hexdigest()


def _profile(program: Any, state: Any, batch: Any, table: Any) -> dict[str, Any]:
    """Returns the kernels of a training step by their time on the device, the largest first.

    On a CPU they are those of the threads that compute.
    """
    state, _ = jax.block_until_ready(program(state, batch, table))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_PROFILED_STEPS):
                state, _ = program(state, batch, table)
            jax.block_until_ready(state)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        milliseconds, counts = _kernel_times(str(file))
    total = sum(milliseconds.values())
    return {
        "kernel_ms_per_step": round(total / _PROFILED_STEPS, 3),
        "kernels_per_step": round(sum(counts.values()) / _PROFILED_STEPS),
        "largest": [
            {
                "kernel": name,
                "ms": round(spent / _PROFILED_STEPS, 3),
                "percent": round(100 * spent / total, 1),
            }
            for name, spent in milliseconds.most_common(_NUM_KERNELS)
        ],
    }


def _kernel_times(file: str) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Returns milliseconds and number of the kernels in a profile, by name without its number."""
    milliseconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    planes = list(jax.profiler.ProfileData.from_file(file).planes)
    devices = [plane for plane in planes if plane.name.startswith(_DEVICE_PLANE)]
    for plane in devices[:1] or [plane for plane in planes if plane.name == _HOST_PLANE]:
        for line in plane.lines:
            # On a GPU each stream has a line; those that are derived from them would count twice.
            if devices and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                if not devices and not line.name.startswith("tf_XLA"):
                    continue
                name = event.name.rstrip("0123456789").rstrip("._")
                milliseconds[name] += event.duration_ns / 1e6
                counts[name] += 1
    return milliseconds, counts
