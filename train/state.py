"""What a step changes: parameters, optimizer state and the step's number."""

import typing
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from train.octo.config import OctoConfig
from train.octo.policy import init_params


@typing.no_type_check
@struct.dataclass
class TrainState:
    """A pytree of arrays; everything random is drawn from the seed and `step`."""

    step: jax.Array
    """int32: steps taken."""
    params: Any
    """float32, nested as linen has them."""
    opt_state: optax.OptState
    """Of the trained parameters."""


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def init_state(
    config: OctoConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state; works under `jax.jit` and `jax.eval_shape`."""
    params = init_params(config, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
