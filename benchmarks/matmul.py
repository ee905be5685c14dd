"""The rate of square matrix products, with which the others compare what they measure."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measuring import timed

_SIZES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


def make_matmul(dtype: str, precision: Any = None) -> tuple[Callable[[], object], float]:
    """Returns a product on the first device, and its GFLOP."""
    size = _SIZES[jax.default_backend()]
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))
    return lambda: multiply(matrix).block_until_ready(), 2 * size**3 / 1e9


def matmul_gflop_s(dtype: str) -> float:
    """Returns the rate by wall time: the median of five, after one that is not counted."""
    work, gflop = make_matmul(dtype)
    return gflop / statistics.median([timed(work)[2] for _ in range(6)][1:])
