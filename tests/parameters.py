"""Parameters of small models in a tenth of the time that initialising them takes."""

import functools
from typing import Any

import jax
import numpy as np

from train.octo.functional import init_params
from train.octo.octo_config import OctoConfig


@functools.cache
def random_params(config: OctoConfig) -> Any:
    """Nested float32 arrays of a normal distribution of deviation 0.1, none of them zero.

    Initialising compiles a program, or hundreds outside of `jax.jit`; tests whose values do not
    matter need the shapes alone. Callers share the arrays and copy what they change.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes)
