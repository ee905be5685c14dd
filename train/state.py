"""What a step changes: parameters, their average, optimizer state and the step's number."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from pipeline.memory import release_freed_memory
from train.config import TrainConfig
from train.octo.policy import init_params
from train.optimizer import Parameters, join_frozen, split_frozen


@typing.no_type_check
@struct.dataclass
class TrainState:
    """A pytree of arrays; everything random is drawn from the seed and `step`."""

    step: jax.Array
    """int32: steps taken, those included whose update was not applied."""
    params: Any
    """float32, nested as linen has them."""
    opt_state: optax.OptState
    """Of the trained parameters, by path."""
    ema: Parameters
    """float32: the exponential moving average of the trained parameters, by path; empty without."""


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def fresh_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, shardings: Any = None
) -> TrainState:
    """A fresh state on the devices.

    Args:
      config: The run.
      optimizer: Of its trained parameters.
      shardings: One a leaf, or one for all; None: all on the first device.
    """
    # It runs once: on a CPU, 8 s of compilation become 4.
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(
        lambda: init_state(config, optimizer), out_shardings=shardings, compiler_options=quickly
    )
    compiled = init.lower().compile()
    release_freed_memory()
    state = jax.block_until_ready(compiled())
    release_freed_memory()
    return state


def init_state(config: TrainConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state; works under `jax.jit` and `jax.eval_shape`."""
    params = init_params(config.model, jax.random.key(config.seed))
    trained, _ = split_frozen(params, config.frozen)
    ema = {} if config.optimizer.ema_decay is None else trained
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema)


def averaged_params(params: Any, ema: Mapping[str, Any], frozen: Sequence[str]) -> Any:
    """The parameters that a policy uses: the average of the trained ones, where there is one.

    Args:
      params: Nested.
      ema: Of a state.
      frozen: Globs over paths.
    """
    if not ema:
        return params
    return join_frozen(dict(ema), split_frozen(params, frozen)[1])
