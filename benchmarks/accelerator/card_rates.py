"""What the machine is, and the rates that everything else is compared with."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.measured_cases import Sizes
from benchmarks.matmul import matmul_gflop_s
from benchmarks.measuring import timed

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "array-record", "orbax-checkpoint")


def measure_card(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yields the machine, the rates of matrix products, and that of a copy in memory."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    yield {
        "measurement": "machine",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "memory_gb": round(statistics_of_device.get("bytes_limit", 0) / 1e9, 1),
        "host_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    # float32 by default is TF32 on NVIDIA GPUs; "highest" is float32 throughout.
    rates = {
        "bfloat16": matmul_gflop_s("bfloat16", None, sizes.matmul_size),
        "float32_default": matmul_gflop_s("float32", None, sizes.matmul_size),
        "float32_highest": matmul_gflop_s("float32", "highest", sizes.matmul_size),
    }
    yield {
        "measurement": "matmul",
        **{f"{name}_tflop_s": round(rate / 1e3, 4) for name, rate in rates.items()},
    }
    yield {"measurement": "copy", "read_and_written_gb_s": round(_copy_gb_s(sizes.copied_mb), 2)}


def _copy_gb_s(megabytes: int) -> float:
    source = jax.random.normal(jax.random.key(0), (megabytes << 18,), jnp.float32)
    negate = jax.jit(jnp.negative)
    seconds = [timed(lambda: jax.block_until_ready(negate(source)))[2] for _ in range(6)][1:]
    return 2 * source.nbytes / 1e9 / statistics.median(seconds)
