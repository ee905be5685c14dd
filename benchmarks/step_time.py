"""What one training step of octo-small costs: compilation, time, memory, and its share of the peak.

    python -m benchmarks.step_time [--batch_size 4] [--variants cached in_step cached_bfloat16]

Each variant runs in a process of its own, so that its peak memory is its own. The step is that of a
run: images brought to the model's size and augmented, forward, backward, optimizer. Of the dataset
it takes the shapes of a batch. The matmul rate is measured in the same process, on square float32
(or bfloat16) matrices.
"""

import dataclasses
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import jax
import numpy as np
import tyro

from benchmarks import measuring
from benchmarks.matmul import matmul_gflop_s
from pipeline.errors import user_errors_exit
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.device import peak_bytes
from pipeline.memory import release_freed_memory
from train.octo.octo_config import octo_small
from train.run_setup import Setup, open_inputs, set_up
from train.train_config import OptimizerConfig, TrainConfig

Variant = Literal["cached", "cached_remat", "cached_by_head", "cached_bfloat16", "in_step"]
_CHANGES: dict[Variant, dict[str, Any]] = {
    "cached_remat": {"remat": True},
    "cached_by_head": {"attention": "by_head"},
    "cached_bfloat16": {"compute_dtype": "bfloat16"},
}
_VOCABULARY = "tests/data/vocabulary.model"


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures the training step of octo-small; start it in the folder of the checkout."""

    dataset: str = "data/libero_mini"
    """Converted dataset with the cameras image_primary and image_wrist."""
    batch_size: int = 4
    """Samples."""
    window_size: int = 2
    """Steps of history."""
    num_steps: int = 3
    """Steps that are timed, after one that is not."""
    variants: tuple[Variant, ...] = get_args(Variant)
    """`cached`: T5's output is looked up; `in_step`: T5 runs in the step."""
    only: Annotated[Variant | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Measure one variant in this process; prints one JSON object."""


def main() -> None:
    """Parses the command line and prints one JSON object per variant."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.step_time", use_underscores=True)
        if args.only is not None:
            measuring.print_figures(measure(args, args.only))
            return
    for variant in args.variants:
        command = measuring.module("benchmarks.step_time", *sys.argv[1:], "--only", variant)
        subprocess.run(command, check=True)


def measure(args: Args, variant: Variant) -> dict[str, Any]:
    """Compile and step times in seconds, memory in MB, GFLOP of a step and GFLOP/s."""
    setup = _set_up(args, variant)
    state = setup.first_state()
    table = None if variant == "in_step" else setup.encode_language(state.params)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), setup.batch
    )
    step = jax.jit(setup.step, donate_argnums=0)
    lowered, _, trace_s = measuring.timed(step.lower, state, batch, table)
    compiled, _, compile_s = measuring.timed(lowered.compile)
    release_freed_memory()  # as a run does
    times, loss = [], math.nan
    for _ in range(args.num_steps + 1):
        (state, metrics), *spent = measuring.timed(_waited, compiled, state, batch, table)
        times.append(spent)
        loss = float(metrics["loss"])
    cpu_s, step_s = (statistics.median(column) for column in zip(*times[1:], strict=True))
    # Without recomputation and loops, of which XLA counts one pass; before compilation.
    plain = _set_up(args, "in_step" if variant == "in_step" else "cached")
    cost = jax.jit(plain.step).lower(state, batch, table).cost_analysis() or {}
    gflop = cost.get("flops", math.nan) / 1e9
    rate = matmul_gflop_s(setup.config.model.compute_dtype)
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


def _waited(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def _set_up(args: Args, variant: Variant) -> Setup:
    config = train_config(args.dataset, args.batch_size, num_steps=1000, save_dir="unused")
    data = dataclasses.replace(config.data, window_size=args.window_size)
    model = dataclasses.replace(config.model, **_CHANGES.get(variant, {}))
    config = dataclasses.replace(config, data=data, model=model)
    return set_up(config, open_inputs(config))


def train_config(dataset: str, batch_size: int, num_steps: int, save_dir: str) -> TrainConfig:
    """A run of octo-small from random weights, which change no time."""
    return TrainConfig(
        data=DataConfig((DatasetConfig(dataset),), _VOCABULARY),
        model=octo_small(),
        optimizer=OptimizerConfig(warmup_steps=1, decay_steps=num_steps),
        batch_size=batch_size,
        num_steps=num_steps,
        save_interval=num_steps,
        save_dir=save_dir,
    )


if __name__ == "__main__":
    main()
