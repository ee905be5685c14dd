"""A tokenizer of your own: a force-torque sensor at the wrist, one token each for force and torque.

    from force_torque import ForceTorqueConfig

    model = dataclasses.replace(octo_small(), tokenizers=(ForceTorqueConfig(),))

with `force_torque` among `DataConfig.observations` but not among `DataConfig.normalized`, so that
it keeps its units. Contacts span decades, from a touch of 0.1 N to a push of 100 N: the tokens hold
the direction and the logarithm of the magnitude.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from octograin import LeafSpec, TokenGroup, observation_mask

_SMALLEST = 1e-6
"""Lower bound of a magnitude whose direction is computed."""


@dataclasses.dataclass(frozen=True)
class ForceTorqueConfig:
    """A wrench per step: its key in the batch, and the magnitudes that count as small."""

    name: str = "force_torque"
    """Name of the input: its token group is `obs_<name>`."""
    observation_key: str = "force_torque"
    """Key of the vector under `observation`: force x y z in N, then torque x y z in Nm."""
    force_n: float = 1.0
    """Force below which the magnitude is nearly linear, in N; such as the sensor's noise."""
    torque_nm: float = 0.05
    """Torque below which the magnitude is nearly linear, in Nm."""

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        """Returns the type of the vector."""
        return {self.observation_key: LeafSpec("float32", (6,))}

    @property
    def tokens_per_step(self) -> int:
        """Returns 2: the force and the torque."""
        return 2

    def make_tokenizer(self, dtype: str) -> nn.Module:
        """Returns the module, which computes in float32: magnitudes span decades."""
        del dtype
        return ForceTorqueTokenizer(self)


class ForceTorqueTokenizer(nn.Module):
    """Turns a wrench into two tokens; it has no parameters, the model's projection learns."""

    config: ForceTorqueConfig

    def __call__(self, observation: Mapping[str, Any], task: Mapping[str, Any]) -> TokenGroup:
        """Returns tokens (b w 2 4): a unit vector, and log(1 + magnitude / the small one).

        Args:
          observation: Has the vector, float32 (b w 6) in N and Nm.
          task: Not used.
        """
        del task
        wrench = observation[self.config.observation_key].astype(jnp.float32)
        tokens = [
            _direction_and_size(wrench[..., :3], self.config.force_n),
            _direction_and_size(wrench[..., 3:], self.config.torque_nm),
        ]
        mask = observation_mask(observation, self.config.observation_key, num_tokens=2)
        return TokenGroup(jnp.stack(tokens, axis=2), mask)


def _direction_and_size(vector: jax.Array, small: float) -> jax.Array:
    """Returns (b w 4) for vectors (b w 3); the direction of a zero is zero."""
    magnitude = jnp.linalg.norm(vector, axis=-1, keepdims=True)
    direction = vector / jnp.maximum(magnitude, _SMALLEST)
    return jnp.concatenate([direction, jnp.log1p(magnitude / small)], axis=-1)
