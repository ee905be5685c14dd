"""A run as `train.run` makes it, whose waiting counts, and the policy of its checkpoint."""

import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.accelerator.measured_cases import Sizes
from benchmarks.accelerator.train_steps import Places, StepCase, make_config
from train.flags import Flags
from train.metrics.step_metrics import read_metrics
from train.policy import Policy
from train.run import run
from train.run_setup import open_inputs, set_up


def measure_run(case: StepCase, sizes: Sizes, places: Places) -> Iterator[dict[str, Any]]:
    """Yields the time of a training step that the loader feeds, and its share of waiting."""
    config = make_config(case, sizes, places, sizes.run_batch)
    setup = set_up(config, open_inputs(config))
    rows = list(read_metrics(pathlib.Path(run(Flags(config)))))
    steady = rows[sizes.first_steps :]
    seconds = [row.step_s for row in steady]
    yield {
        "measurement": f"run:{case.num_tokens}:{case.variant}",
        "model": case.model,
        "num_tokens": case.num_tokens,
        "variant": case.variant,
        "batch_size": config.batch_size,
        "steps": len(steady),
        "loader_threads": config.data.num_threads,
        "batch_mb": round(setup.loader.memory.batch_bytes / 1e6, 2),
        "step_ms": round(1e3 * statistics.median(seconds), 3),
        "samples_s": round(config.batch_size * len(steady) / sum(seconds), 1),
        "loader_wait_percent": round(
            100 * sum(row.data_wait_s for row in steady) / sum(seconds), 3
        ),
        "peak_gb": rows[-1].memory_gb,
        "estimated_gb": round(setup.estimate_memory().total / 1e9, 3),
        "loss": round(rows[-1].loss, 4),
    }


def measure_policy(sizes: Sizes, places: Places) -> Iterator[dict[str, Any]]:
    """Yields the latency of one prediction in one environment, by the checkpoint of the run."""
    started = time.perf_counter()
    policy = Policy.from_run(f"{places.work}/run_0")
    policy.warm_up()
    start_s = time.perf_counter() - started
    observation = policy.example_observation()
    policy.reset(0, "pick up the cup")
    times_ms = []
    for _ in range(sizes.num_predictions + 1):
        asked = time.perf_counter()
        policy.infer({0: observation})
        times_ms.append(1e3 * (time.perf_counter() - asked))
    median, most = np.percentile(times_ms[1:], [50, 99])
    yield {
        "measurement": "policy",
        "start_s": round(start_s, 2),
        "predictions": sizes.num_predictions,
        "median_ms": round(float(median), 3),
        "p99_ms": round(float(most), 3),
        "model_ms_of_last": round(policy.timing.model_ms, 3),
    }
