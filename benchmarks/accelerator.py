"""The figures of one accelerator, in one command: matrix products, training, loading, VGGT.

    python -m benchmarks.accelerator [--dataset data/libero_mini] [--batch_sizes 16 64]

Prints one JSON object per measurement as soon as it is known, and `failed` with the last line of
the error where one could not be taken; the others are taken all the same. Each runs in a process of
its own, so that its peak memory is its own.

- `matmul`: the rate of square matrix products.
- `train`: octo-small in bfloat16 as `train.run` trains it, on a converted dataset: time per
  training step, the share of it that the devices wait for the loader, and peak memory beside the
  estimate of `--dry_run`. Its weights are random, which changes no time.
- `vggt`: frames per second of VGGT-1B, see `benchmarks.vggt`.

Neither tensorflow-datasets nor pyarrow is imported. `benchmarks/pack.py` collects the dataset and
the wheels for a machine without a network.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import tyro

from benchmarks import step_time, vggt
from pipeline.errors import user_errors_exit
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.vggt.weight_sources import RANDOM, config_of
from train.flags import Flags
from train.metrics.step_metrics import read_metrics
from train.octo.octo_config import octo_small
from train.run import run
from train.run_setup import open_inputs, set_up
from train.train_config import OptimizerConfig, TrainConfig

_NUM_UNSTEADY = 5
"""Training steps before the loader and the devices are in step."""
_VOCABULARY = "tests/data/vocabulary.model"
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
            _print(measure(args, args.only))
            return
    for name in _names(args):
        command = [sys.executable, "-m", "benchmarks.accelerator", *sys.argv[1:], "--only", name]
        done = subprocess.run(command, capture_output=True, check=False)
        line = done.stdout.decode().strip().rpartition("\n")[2]
        reason = done.stderr.decode().strip().rpartition("\n")[2]
        failed = {"measurement": name, "failed": reason}
        _print(failed if done.returncode else json.loads(line))


def measure(args: Args, name: str) -> dict[str, Any]:
    """Returns the figures of one measurement, each with its unit in its name."""
    kind, _, number = name.partition(":")
    figures = {"measurement": name}
    match kind:
        case "machine":
            return figures | _machine()
        case "matmul":
            return figures | {
                f"{dtype}_tflop_s": round(step_time.matmul_gflop_s(dtype) / 1e3, 2)
                for dtype in ("bfloat16", "float32")
            }
        case "train":
            return figures | _train(args, int(number))
        case "vggt":
            return figures | _vggt(args)
    raise ValueError(f"no measurement is called {name}")


def _names(args: Args) -> Iterator[str]:
    yield from ("machine", "matmul")
    yield from (f"train:{batch_size}" for batch_size in args.batch_sizes)
    yield "vggt"


def _machine() -> dict[str, Any]:
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _train(args: Args, batch_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = _config(args, batch_size, f"{folder}/run")
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
        "estimated_gb": round(estimate.total / 1e9, 3),
        "loss": round(rows[-1].loss, 4),
    }


def _config(args: Args, batch_size: int, save_dir: str) -> TrainConfig:
    return TrainConfig(
        data=DataConfig((DatasetConfig(args.dataset),), _VOCABULARY),
        model=dataclasses.replace(octo_small(), compute_dtype="bfloat16"),
        optimizer=OptimizerConfig(warmup_steps=1, decay_steps=args.num_steps),
        batch_size=batch_size,
        num_steps=args.num_steps,
        save_interval=args.num_steps,
        save_dir=save_dir,
    )


def _vggt(args: Args) -> dict[str, Any]:
    last = config_of(RANDOM + args.vggt_preset, None).num_layers - 1
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


def _print(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
