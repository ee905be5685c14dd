"""A tiny octo-small model with recorded inputs and outputs of the original code."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from train.octo.model import OctoModule
from train.octo.octo_config import ImageTokenizerConfig, LanguageConfig, OctoConfig, T5Config, demo
from train.octo.released.octo_checkpoint import OctoCheckpoint

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "octo"


def _nest(path: Path) -> dict[str, Any]:
    """Returns the arrays of a file nested by their `/`-joined names; int64 ids become int32."""
    with np.load(path) as arrays:
        flat = {
            name: array.astype(np.int32) if array.dtype == np.int64 else array
            for name, array in arrays.items()
        }
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_nest() -> Callable[[str], dict[str, Any]]:
    """The arrays of a recorded file, such as `b/params`, as nested jax arrays."""
    return lambda name: jax.tree.map(jnp.asarray, _nest(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="session")
def config() -> OctoConfig:
    stem = (32, 32, 64, 64)
    return dataclasses.replace(
        demo(),
        images=(
            ImageTokenizerConfig("primary", "image_primary", 64, stem, stem_dim=64),
            ImageTokenizerConfig("wrist", "image_wrist", 32, stem, stem_dim=64),
        ),
        language=LanguageConfig(
            t5=T5Config(vocab_size=200, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
        ),
    )


@pytest.fixture(scope="session")
def module(config: OctoConfig) -> OctoModule:
    return OctoModule(config)


@pytest.fixture(scope="session")
def params() -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, OctoCheckpoint(str(GOLDEN / "ckpt_tiny"), 100).load().params)


@pytest.fixture(scope="session")
def batch() -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, _nest(GOLDEN / "a" / "batch.npz"))


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    """Outputs of the original: `out`, `loss`, `sched`, `denoiser`, `sample`, `grad`, ..."""
    return _nest(GOLDEN / "a" / "outputs.npz")


@pytest.fixture(scope="session")
def recorded_variants() -> dict[str, Any]:
    """Outputs of the original for other inputs or settings, by the variant's name."""
    return _nest(GOLDEN / "a" / "variants.npz")
