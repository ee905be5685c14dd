"""The training state: parameters, their average, optimizer state and step number."""

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pipeline.loading.device import FSDP_AXIS
from pipeline.memory import release_freed_memory
from train.octo.functional import init_params
from train.train_config import TrainConfig
from train.update.optimizer import Parameters, join_frozen, split_frozen

SMALLEST_SHARDED_BYTES = 1 << 20
"""Smaller arrays are replicated: gathering them would take more time than the memory is worth."""


@typing.no_type_check
@struct.dataclass
class TrainState:
    """A pytree of arrays; all random numbers are derived from the seed and `step`."""

    step: jax.Array
    """Training steps taken, int32, including those whose update was skipped."""
    params: Any
    """Float32 parameters, nested as in linen."""
    opt_state: optax.OptState
    """State of the optimizer, for the trained parameters by path."""
    ema: Parameters
    """Float32 exponential moving average of the trained parameters, by path; the initial ones
    before the first update, and empty if unused."""


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def fresh_state(init: Callable[[], TrainState], shardings: Any = None) -> TrainState:
    """Makes a fresh state on the devices.

    Args:
      init: Returns a fresh state under `jax.jit`, such as a partial `init_state`.
      shardings: One sharding per leaf, or one for all; None: everything on the first device.
    """
    # This program runs once: on a CPU, low effort compiles it in 4 s instead of 8.
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    jitted = jax.jit(init, out_shardings=shardings, compiler_options=quickly)
    compiled = jitted.lower().compile()
    # Returns what the compiler used before the state needs it: 1.4 of 2.4 GB for octo-small.
    release_freed_memory()
    state = jax.block_until_ready(compiled())
    release_freed_memory()
    return state


def init_state(config: TrainConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns a fresh state; works under `jax.jit` and `jax.eval_shape`."""
    return first_state(config, optimizer, init_params(config.model, jax.random.key(config.seed)))


def first_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, params: Any
) -> TrainState:
    """Returns the state before the first training step of a run with these initial parameters."""
    trained, _ = split_frozen(params, config.frozen)
    ema = {} if config.optimizer.ema_decay is None else trained
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema)


def averaged_params(params: Any, ema: Mapping[str, Any], frozen: Sequence[str]) -> Any:
    """Returns the parameters that a policy uses: the averaged ones, if there is an average.

    Args:
      params: Nested parameters.
      ema: The average in a state.
      frozen: Globs over parameter paths.
    """
    if not ema:
        return params
    # Frozen parameters have no average; they are the same in every step.
    return join_frozen(dict(ema), split_frozen(params, frozen)[1])


def shard_structs(structs: Any, mesh: Mesh, smallest_bytes: int = SMALLEST_SHARDED_BYTES) -> Any:
    """Adds a sharding to each `jax.ShapeDtypeStruct` of a tree.

    An array is sharded along its longest axis whose length is a multiple of the `fsdp` devices.

    Args:
      structs: A tree of shapes.
      mesh: The device mesh, with the axis `fsdp`.
      smallest_bytes: Smaller arrays are replicated.
    """
    parts = mesh.shape[FSDP_AXIS]

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec()
        if parts > 1 and leaf.size * leaf.dtype.itemsize >= smallest_bytes:
            # Only axes that all devices divide: uneven parts would need padding.
            axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
            if axes:
                # The longest axis, so that a part is still a large piece.
                axis = max(axes, key=lambda axis: leaf.shape[axis])
                spec = PartitionSpec(*([None] * axis), FSDP_AXIS)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, structs)
