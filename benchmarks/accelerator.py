"""The figures of one accelerator, in one command: matrix products, training, loading, VGGT.

    python -m benchmarks.accelerator [--dataset data/libero_mini] [--batch_sizes 16 64]

Prints one JSON object per measurement as soon as it is known, and `failed` with the last line of
the error where one could not be taken; the others are taken all the same. Each runs in a process of
its own, so that its peak memory is its own.

- `matmul`: the rate of square matrix products.
- `train`: octo-small in bfloat16 as `train.run` trains it, on a converted dataset: time per
  training step, the share of it that the devices wait for the loader, and peak memory beside the
  estimate of `--dry_run`. Its weights are random, which changes no time. The estimate is of one
  device's memory. On a CPU the peak is of the whole process: libraries, compiler, loader and the
  checkpoint that is written are in it, and XLA computes bfloat16 in float32 there: with batch 2 the
  estimate is 2.0 GB, and would be 2.4 in float32. Compare the two on an accelerator alone.
- `vggt`: frames per second of VGGT-1B, see `benchmarks.vggt`.

Neither tensorflow-datasets nor pyarrow is imported. `benchmarks/pack.py` collects the dataset and
the wheels for a machine without a network.
"""

import dataclasses
import importlib.metadata
import pathlib
import platform
import statistics
import sys
import tempfile
from typing import Annotated, Any

import jax
import tyro

from benchmarks import measuring, step_time, vggt
from benchmarks.matmul import matmul_gflop_s
from pipeline.errors import user_errors_exit
from pipeline.vggt.weight_sources import RANDOM, config_of
from train.flags import Flags
from train.metrics.step_metrics import read_metrics
from train.run import run
from train.run_setup import open_inputs, set_up

_NUM_UNSTEADY = 5
"""Training steps before the loader and the devices are in step."""
_PACKAGES = ("jax", "jaxlib", "flax", "grain", "array-record", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures an accelerator; start it in the folder of the checkout."""

    dataset: str = "data/libero_mini"
    """Converted dataset with the cameras image_primary and image_wrist."""
    batch_sizes: tuple[int, ...] = (16, 64)
    """Samples per training step, one measurement each."""
    num_steps: int = 40
    """Training steps of each."""
    frames: int = 64
    """Images that VGGT encodes at a time."""
    vggt_preset: str = "vggt_1b"
    """Sizes of that model."""
    only: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Take one measurement in this process, such as `train:64`."""


def main() -> None:
    """Parses the command line and prints one JSON object per measurement."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.accelerator", use_underscores=True)
        if args.only is not None:
            measuring.print_figures(measure(args, args.only))
            return
    for name in ("machine", "matmul", *(f"train:{size}" for size in args.batch_sizes), "vggt"):
        command = measuring.module("benchmarks.accelerator", *sys.argv[1:], "--only", name)
        try:
            figures = measuring.in_a_process(command)
        except RuntimeError as error:  # the others are taken all the same
            figures = {"measurement": name, "failed": str(error)}
        measuring.print_figures(figures)


def measure(args: Args, name: str) -> dict[str, Any]:
    """Returns the figures of one measurement, each with its unit in its name."""
    kind, _, number = name.partition(":")
    figures = {"measurement": name}
    match kind:
        case "machine":
            return figures | _machine()
        case "matmul":
            return figures | {
                f"{dtype}_tflop_s": round(matmul_gflop_s(dtype) / 1e3, 2)
                for dtype in ("bfloat16", "float32")
            }
        case "train":
            return figures | _train(args, int(number))
        case "vggt":
            return figures | _vggt(args)
    raise ValueError(f"no measurement is called {name}")


def _machine() -> dict[str, Any]:
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _train(args: Args, batch_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = step_time.train_config(
            args.dataset, batch_size, args.num_steps, save_dir=f"{folder}/run"
        )
        model = dataclasses.replace(config.model, compute_dtype="bfloat16")
        config = dataclasses.replace(config, model=model)
        estimate = set_up(config, open_inputs(config)).estimate_memory()
        rows = list(read_metrics(pathlib.Path(run(Flags(config)))))
    steady = rows[_NUM_UNSTEADY:] or rows
    seconds = [row.step_s for row in steady]
    wait = sum(row.data_wait_s for row in steady) / sum(seconds)
    return {
        "batch_size": batch_size,
        "first_step_s": round(rows[0].step_s, 2),
        "step_s": round(statistics.median(seconds), 4),
        "samples_s": round(batch_size / statistics.median(seconds), 1),
        "loader_wait_percent": round(100 * wait, 2),
        "peak_gb": rows[-1].memory_gb,
        "peak_of": "process" if jax.default_backend() == "cpu" else "device",
        "estimated_gb": round(estimate.total / 1e9, 3),
        "loss": round(rows[-1].loss, 4),
    }


def _vggt(args: Args) -> dict[str, Any]:
    last = config_of(RANDOM + args.vggt_preset).num_layers - 1
    figures = vggt.measure(
        vggt.Args(
            preset=args.vggt_preset,
            batch_size=args.frames,
            layers=(last,),
            compute_dtype="bfloat16",
        )
    )
    taken = ("first_batch_s", "gflop_a_frame", "matmul_gflop_s", "ratio", "peak_mb")
    wall_s = float(str(figures["frame_wall_s"]))
    rates = {"batch_size": args.frames, "frames_s": round(1 / wall_s, 1), "frame_s": wall_s}
    return rates | {key: figures[key] for key in taken}


if __name__ == "__main__":
    main()
