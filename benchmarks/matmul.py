"""The rate of square matrix products, with which the others compare what they measure."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measuring import timed

_SIZES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_NUM_PRODUCTS = {"cpu": 1, "gpu": 20, "tpu": 20}
"""Products started together: one alone takes an H100 1.4 ms, of which starting it is a part."""


def make_matmul(
    dtype: str, precision: Any = None, size: int | None = None
) -> tuple[Callable[[], object], float]:
    """Returns products on the first device, and their GFLOP.

    The numbers are random: on zeros and ones a GPU draws less power, and is faster by a tenth.

    Args:
      dtype: Dtype of the matrices.
      precision: Precision of float32 products; None: the device's default, TF32 on NVIDIA GPUs.
      size: Rows and columns; None: what fills the device.
    """
    size = size or _SIZES[jax.default_backend()]
    count = _NUM_PRODUCTS[jax.default_backend()]
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))

    def work() -> object:
        products = [multiply(matrix) for _ in range(count)]
        return jax.block_until_ready(products)

    return work, count * 2 * size**3 / 1e9


def matmul_gflop_s(dtype: str, precision: Any = None, size: int | None = None) -> float:
    """Returns the rate by wall time: the median of five, after one that is not counted."""
    work, gflop = make_matmul(dtype, precision, size)
    return gflop / statistics.median([timed(work)[2] for _ in range(6)][1:])
