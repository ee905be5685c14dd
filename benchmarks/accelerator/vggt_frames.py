"""Times VGGT on frames: bfloat16, float32, and float32 with the device's default precision."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from benchmarks import measuring
from benchmarks.accelerator.measured_cases import Sizes
from benchmarks.vggt import gflop_of_frame
from pipeline.loading.device import peak_bytes
from pipeline.vggt.aggregator_weights import VggtWeights, leaf_shapes
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import ComputeDtype, EncoderSpec, Precision
from pipeline.vggt.weight_sources import RANDOM, config_of

_ROUNDS = 5
_CASES: tuple[tuple[ComputeDtype, Precision, str], ...] = (
    ("bfloat16", "highest", "bfloat16"),
    ("float32", "highest", "float32_highest"),
    ("float32", "default", "float32_default"),
)
"""Dtype, precision, and the rate that it is compared with."""


def measure_vggt(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yields frames per second for each precision; each has fresh weights, drawn on the device."""
    shape = (sizes.frames, 1, sizes.image_size, sizes.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for dtype, precision, rate in _CASES:
        if precision == "default" and jax.default_backend() == "cpu":
            continue  # a CPU has one precision
        encoder = _make_encoder(sizes, dtype, precision)
        # The images cross the bus each time, as for `octograin tokens`; the tokens stay.
        walls = [
            measuring.timed(lambda e=encoder: jax.block_until_ready(e.encode(images)))[2]
            for _ in range(_ROUNDS + 1)
        ]
        second = statistics.median(walls[1:])
        gflop = gflop_of_frame(encoder.spec)
        yield {
            "measurement": f"vggt:{rate}",
            "preset": sizes.vggt_preset,
            "frames": sizes.frames,
            "image_size": sizes.image_size,
            "first_batch_s": round(walls[0], 2),
            "frames_s": round(sizes.frames / second, 2),
            "gflop_per_frame": round(gflop, 3),
            "model_tflop_s": round(sizes.frames * gflop / second / 1e3, 4),
            "compared_with": f"{rate}_tflop_s",
            "peak_gb": round(peak_bytes() / 1e9, 3),
        }


def _make_encoder(sizes: Sizes, dtype: ComputeDtype, precision: Precision) -> VggtEncoder:
    source = RANDOM + sizes.vggt_preset
    config = config_of(source)
    params = jax.jit(lambda key: _draw(key, leaf_shapes(config, config.num_layers), dtype))(
        jax.random.key(0)
    )
    weights = VggtWeights(source, config, params, config.num_layers, "random", "none", dtype)
    spec = EncoderSpec(
        source,
        weights.digest,
        weights.licence,
        ("camera",),
        config,
        (config.num_layers - 1,),
        views="single",
        image_size=(sizes.image_size, sizes.image_size),
        compute_dtype=dtype,
        precision=precision,
    )
    return VggtEncoder(spec, weights)


def _draw(key: jax.Array, shapes: dict[str, tuple[int, ...]], dtype: str) -> Any:
    """Draws all parameters in one program: on the host the 909 M of VGGT-1B take half a minute.

    All begin with the same numbers, which changes no time and is compiled in one.
    """
    longest = max(math.prod(shape) for shape in shapes.values())
    drawn = 0.02 * jax.random.normal(key, (longest,))
    leaves = {}
    for path, shape in shapes.items():
        leaf = drawn[: math.prod(shape)].reshape(shape)
        scales = path.endswith(("/scale", "/gamma"))
        leaves[path] = (1.0 + leaf if scales else leaf).astype(
            dtype if path.endswith("/kernel") else "float32"
        )
    return traverse_util.unflatten_dict(leaves, sep="/")
