"""What a step changes: parameters, optimizer state and the step's number."""

import typing
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from pipeline.memory import release_freed_memory
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


def fresh_state(
    config: OctoConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    shardings: Any = None,
) -> TrainState:
    """A fresh state on the devices.

    Args:
      config: The model.
      optimizer: Of its parameters.
      seed: Of the random parameters.
      shardings: One a leaf, or one for all; None: all on the first device.
    """
    # It runs once: on a CPU, 8 s of compilation become 4.
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(
        lambda: init_state(config, optimizer, seed),
        out_shardings=shardings,
        compiler_options=quickly,
    )
    compiled = init.lower().compile()
    release_freed_memory()
    state = jax.block_until_ready(compiled())
    release_freed_memory()
    return state


def init_state(
    config: OctoConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state; works under `jax.jit` and `jax.eval_shape`."""
    params = init_params(config, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
