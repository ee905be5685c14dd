"""What one training step of octo-small costs: compilation, time, memory, and its share of the peak.

    python -m benchmarks.step_time [--batch_size 4] [--variants cached in_step cached_bfloat16]

Each variant runs in a process of its own, so that its peak memory is its own. The step is that of a
run: images brought to the model's size and augmented, forward, backward, optimizer. The matmul rate
is measured in the same process, on square float32 (or bfloat16) matrices.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from pipeline.errors import UserError, user_errors_exit
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.device import peak_bytes
from pipeline.loading.text import TaskTable
from pipeline.memory import release_freed_memory
from train.octo.octo_config import octo_small
from train.train_config import OptimizerConfig, TrainConfig
from train.update.optimizer import learning_rate, make_optimizer
from train.update.train_state import fresh_state
from train.update.train_step import make_language_table, make_train_step

Variant = Literal["cached", "cached_remat", "cached_by_head", "cached_bfloat16", "in_step"]
_MATMUL_SIZES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_STORED_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures the training step of octo-small."""

    batch_size: int = 4
    """Samples."""
    window_size: int = 2
    """Steps of history."""
    num_steps: int = 3
    """Steps that are timed, after one that is not."""
    variants: tuple[Variant, ...] = get_args(Variant)
    """`cached`: T5's output is looked up; `in_step`: T5 runs in the step."""
    only: Variant | None = None
    """Measure one variant in this process; prints one JSON object."""

    def __post_init__(self) -> None:
        """Checks the counts."""
        for name in ("batch_size", "window_size", "num_steps"):
            if getattr(self, name) < 1:
                raise UserError(
                    where=f"--{name}",
                    expected="at least 1",
                    found=str(getattr(self, name)),
                    remedy="Give a larger number.",
                )


def main() -> None:
    """Parses the command line and prints one JSON object a variant."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.step_time", use_underscores=True)
    if args.only is not None:
        sys.stdout.write(json.dumps(measure(args, args.only)) + "\n")
        return
    for variant in args.variants:
        command = [sys.executable, "-m", "benchmarks.step_time", "--only", variant]
        command += [f"--batch_size={args.batch_size}", f"--window_size={args.window_size}"]
        subprocess.run([*command, f"--num_steps={args.num_steps}"], check=True)


def measure(args: Args, variant: Variant) -> dict[str, Any]:
    """Compile and step times in seconds, memory in MB, GFLOP of a step and GFLOP/s."""
    config = _config(args, variant)
    optimizer = make_optimizer(config.optimizer)
    schedule = learning_rate(config.optimizer, config.num_steps)
    step = jax.jit(make_train_step(config, optimizer, schedule), donate_argnums=0)
    state = fresh_state(config, optimizer)
    table = None
    if variant != "in_step":
        table = jax.jit(lambda p: make_language_table(config.model, p, _tasks()))(state.params)
    batch = jax.device_put(_batch(args))
    started = time.perf_counter()
    lowered = step.lower(state, batch, table)
    trace_s = time.perf_counter() - started
    started = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - started
    release_freed_memory()  # as a run does
    times, loss = [], math.nan
    for _ in range(args.num_steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, batch, table)
        loss = float(metrics["loss"])
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    step_s, cpu_s = (statistics.median(column) for column in zip(*times[1:], strict=True))
    gflop = _model_gflop(args, variant, state, batch, table)
    rate = matmul_gflop_s(config.model.compute_dtype)
    return {
        "variant": variant,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "batch_size": args.batch_size,
        "trace_s": round(trace_s, 2),
        "compile_s": round(compile_s, 2),
        "step_s": round(step_s, 3),
        "cpu_s": round(cpu_s, 3),
        "gflop": round(gflop, 1),
        "gflop_s": round(gflop / step_s, 1),
        "matmul_gflop_s": round(rate, 1),
        "share_of_matmul_rate": round(gflop / step_s / rate, 3),
        "peak_mb": round(peak_bytes() / 1e6),
        "loss": round(loss, 4),
    }


def _model_gflop(args: Args, variant: Variant, *inputs: Any) -> float:
    """Returns the GFLOP of one training step without recomputation.

    Counted before compilation and without loops, of which XLA counts one pass.
    """
    plain = "in_step" if variant == "in_step" else "cached"
    config = _config(args, plain)
    optimizer = make_optimizer(config.optimizer)
    schedule = learning_rate(config.optimizer, config.num_steps)
    lowered = jax.jit(make_train_step(config, optimizer, schedule)).lower(*inputs)
    return (lowered.cost_analysis() or {}).get("flops", float("nan")) / 1e9


def _config(args: Args, variant: Variant) -> TrainConfig:
    model = octo_small()
    if variant == "cached_bfloat16":
        model = dataclasses.replace(model, compute_dtype="bfloat16")
    if variant == "cached_by_head":
        model = dataclasses.replace(model, attention="by_head")
    if variant == "cached_remat":
        model = dataclasses.replace(model, remat=True)
    return TrainConfig(
        data=DataConfig((DatasetConfig("unused"),), "unused", window_size=args.window_size),
        model=model,
        save_dir="unused",
        batch_size=args.batch_size,
        optimizer=OptimizerConfig(warmup_steps=10),
        num_steps=1000,
    )


def _tasks() -> TaskTable:
    """One instruction of the full length; which one does not matter."""
    ids = np.full((1, 16), 5, np.int32)
    return TaskTable(("text",), ids, np.ones_like(ids), np.ones(1, bool), ())


def _batch(args: Args) -> dict[str, Any]:
    """Random images and actions as the loader gives them for LIBERO."""
    rng = np.random.default_rng(0)
    b, w = args.batch_size, args.window_size
    real = np.ones((b, w), bool)
    image = (b, w, _STORED_SIZE, _STORED_SIZE, 3)
    tasks = _tasks()
    return {
        "observation": {
            "image_primary": rng.integers(0, 256, image, np.uint8),
            "image_wrist": rng.integers(0, 256, image, np.uint8),
            "timestep_pad_mask": real,
            "pad_mask_dict": {"image_primary": real, "image_wrist": real},
        },
        "task": {
            "language_instruction": {
                "input_ids": np.repeat(tasks.input_ids, b, 0),
                "attention_mask": np.repeat(tasks.attention_mask, b, 0),
            },
            "pad_mask_dict": {"language_instruction": np.ones(b, bool)},
            "task_index": np.zeros(b, np.int32),
        },
        "action": rng.standard_normal((b, w, 4, 7), np.float32),
        "action_pad_mask": np.ones((b, w, 4, 7), bool),
        "sample_index": np.arange(b, dtype=np.int32),
    }


def matmul_gflop_s(dtype: str) -> float:
    """Returns the rate of square matrix products of a dtype on the first device."""
    size = _MATMUL_SIZES[jax.default_backend()]
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    seconds = _seconds(lambda: multiply(matrix).block_until_ready())
    return 2 * size**3 / seconds / 1e9


def _seconds(work: Callable[[], object]) -> float:
    """Median of five, after one that is not counted."""
    times = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
