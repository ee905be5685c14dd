"""Measures the cost of encoding a frame against the matmul rate of the same process.

    python -m benchmarks.vggt [--batch_size 4] [--image_size 224 224] [--compute_dtype bfloat16]

The weights are random, which changes no time. On a CPU, seconds are those of all threads (CPU
seconds), so that other work on the machine counts less; matrix products and batches take turns for
the same reason. `ratio` is the time of a frame over that of its matrix products at the matmul rate.
"""

import dataclasses
import statistics
from collections.abc import Callable

import jax
import numpy as np
import tyro

from benchmarks import measuring
from benchmarks.matmul import make_matmul
from pipeline.errors import user_errors_exit
from pipeline.loading.device import peak_bytes
from pipeline.vggt.aggregator_weights import leaf_shapes, load_weights
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import (
    NUM_REGISTERS,
    PATCH_SIZE,
    ComputeDtype,
    EncoderSpec,
    Precision,
    Views,
)
from pipeline.vggt.weight_sources import RANDOM


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures the encoder."""

    preset: str = "vggt_1b"
    """Sizes of the model."""
    batch_size: int = 4
    """Steps encoded together."""
    num_views: int = 1
    """Images per step."""
    views: Views = "single"
    """Whether they see each other."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    layers: tuple[int, ...] = (23,)
    """Layers that are kept; later ones do not run."""
    compute_dtype: ComputeDtype = "float32"
    """Dtype of the matrices."""
    precision: Precision = "highest"
    """Precision of float32 matrix products."""
    num_rounds: int = 5
    """Rounds of one matrix product and one batch, after one that is not counted."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.vggt", use_underscores=True)
        measuring.print_figures(measure(args))


def measure(args: Args) -> dict[str, object]:
    """Returns what was measured, each figure with its unit in its name."""
    encoder, _, load_s = measuring.timed(_encoder, args)
    shape = (args.batch_size, args.num_views, *args.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    product, product_gflop = make_matmul(args.compute_dtype, args.precision)
    rates, frames, walls = [], [], []
    for _ in range(args.num_rounds + 1):
        rates.append(product_gflop / _seconds(product)[0])
        seconds, wall = _seconds(lambda: jax.block_until_ready(encoder.encode(images)))
        frames.append(seconds / args.batch_size / args.num_views)
        walls.append(wall / args.batch_size / args.num_views)
    gflop = gflop_of_frame(encoder.spec)
    rate, frame = (statistics.median(values[1:]) for values in (rates, frames))
    return {
        **dataclasses.asdict(args),
        "device": jax.devices()[0].device_kind,
        "load_s": round(load_s, 1),
        "first_batch_s": round(walls[0] * args.batch_size * args.num_views, 1),
        "gflop_a_frame": round(gflop, 1),
        "matmul_gflop_s": round(rate),
        "frame_s": round(frame, 4),
        "frame_wall_s": round(statistics.median(walls[1:]), 4),
        "ratio": round(frame * rate / gflop, 3),
        "peak_mb": round(peak_bytes() / 1e6),
    }


def gflop_of_frame(spec: EncoderSpec) -> float:
    """Returns the GFLOP of the matrix products of one image."""
    model, num_layers = spec.model, spec.layers[-1] + 1
    backbone_tokens = 1 + NUM_REGISTERS + spec.num_patches
    tokens = dataclasses.replace(spec, kept="all").num_tokens
    seen = tokens * (len(spec.cameras) if spec.views == "joint" else 1)
    products = 0
    for path, shape in leaf_shapes(model, num_layers).items():
        if path.endswith("/kernel"):
            rows = spec.num_patches if shape[0] == 3 * PATCH_SIZE**2 else tokens
            products += rows * int(np.prod(shape))
    attended = model.dino_layers * backbone_tokens**2 + num_layers * tokens * (tokens + seen)
    return 2 * (products + 2 * model.dim * attended) / 1e9


def _encoder(args: Args) -> VggtEncoder:
    weights = load_weights(RANDOM + args.preset, layers=args.layers, dtype=args.compute_dtype)
    spec = EncoderSpec(
        weights.source,
        weights.digest,
        weights.licence,
        tuple(f"camera_{number}" for number in range(args.num_views)),
        weights.config,
        args.layers,
        views=args.views,
        image_size=args.image_size,
        compute_dtype=args.compute_dtype,
        precision=args.precision,
    )
    return VggtEncoder(spec, weights)


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, wall seconds); the former are CPU seconds on a CPU."""
    _, cpu, wall = measuring.timed(work)
    return (cpu if jax.default_backend() == "cpu" else wall), wall


if __name__ == "__main__":
    main()
