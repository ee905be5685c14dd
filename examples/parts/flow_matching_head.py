"""An action head of your own: flow matching, which integrates a learned velocity from noise.

    from flow_matching_head import FlowMatchingConfig

    model = octo_small(head=FlowMatchingConfig(action_horizon=4, action_dim=7))

with `pretrained_differs=("heads_action/*",)` for a model that starts from Octo's weights.

Source: Lipman et al. 2023, "Flow Matching for Generative Modeling", with the straight paths of
  equation 22 and a sigma_min of 0; as an action head in Black et al. 2024, "pi0". There the time
  is drawn from a beta distribution that prefers noise, here from a uniform one.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from octograin import masked_mean

_PERIODS = (4e-3, 4.0)
"""Shortest and longest period of the features of time, as in pi0."""
_TIME_FEATURES = 32


class TrainingNoise(NamedTuple):
    """The random numbers of one loss."""

    time: jax.Array
    """Uniform in [0, 1), float32 (b w 1): 0 is noise, 1 is the action."""
    noise: jax.Array
    """Standard normal, float32 (b w h*a)."""


@dataclasses.dataclass(frozen=True)
class FlowMatchingConfig:
    """The action head that moves noise along a learned velocity to a chunk of actions."""

    action_horizon: int = 4
    """Number of actions per chunk."""
    action_dim: int = 7
    """Size of an action."""
    hidden_dim: int = 256
    """Width of the velocity network."""
    num_layers: int = 3
    """Number of its hidden layers."""
    num_steps: int = 10
    """Number of Euler steps in sampling; training does not depend on it."""
    max_action: float = 5.0
    """Bound of the normalised actions, which are clipped to [-max_action, max_action]."""

    @property
    def flat_dim(self) -> int:
        """Returns the number of values in a chunk."""
        return self.action_horizon * self.action_dim

    def make_head(self) -> nn.Module:
        """Returns the module."""
        return FlowMatchingHead(self)

    def draw_training_noise(self, key: jax.Array, shape: tuple[int, int]) -> TrainingNoise:
        """Draws a time and noise for every step (b w) of the batch."""
        time_key, noise_key = jax.random.split(key)
        return TrainingNoise(
            time=jax.random.uniform(time_key, (*shape, 1)),
            noise=jax.random.normal(noise_key, (*shape, self.flat_dim)),
        )

    def draw_sampling_noise(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Draws where the integration starts, (b h*a): only the last step of the window acts."""
        return jax.random.normal(key, (shape[0], self.flat_dim))


class FlowMatchingHead(nn.Module):
    """Computes the loss of a chunk of actions, and samples chunks."""

    config: FlowMatchingConfig

    def setup(self) -> None:
        """Makes the velocity network."""
        self.hidden = [nn.Dense(self.config.hidden_dim) for _ in range(self.config.num_layers)]
        self.output = nn.Dense(self.config.flat_dim)

    def velocity(self, readout: jax.Array, x: jax.Array, time: jax.Array) -> jax.Array:
        """Returns the velocity of partly noisy chunks, float32 (b w h*a).

        Args:
          readout: The readout tokens of each step, (b w n d).
          x: Flattened chunks (b w h*a).
          time: From 0 to 1, (b w 1).
        """
        features = jnp.concatenate([readout.mean(axis=2), x, time_features(time)], axis=-1)
        for layer in self.hidden:
            features = nn.swish(layer(features))
        return self.output(features)

    def loss(
        self, readout: jax.Array, action: jax.Array, mask: jax.Array, noise: TrainingNoise
    ) -> jax.Array:
        """Returns the mean squared error of the velocity, over the real elements of actions.

        Args:
          readout: The readout tokens of each step, (b w n d).
          action: Normalised actions, (b w h a).
          mask: True where an element of an action is real, bool (b w h a).
          noise: From `FlowMatchingConfig.draw_training_noise`.
        """
        bound = self.config.max_action
        flat = jnp.clip(action, -bound, bound).reshape(noise.noise.shape)
        # A straight path from noise to the action, whose velocity is the same all along.
        x = (1 - noise.time) * noise.noise + noise.time * flat
        error = jnp.square(self.velocity(readout, x, noise.time) - (flat - noise.noise))
        return masked_mean(error.reshape(action.shape), mask)

    def sample(self, readout: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns normalised actions of the window's last step, (b h a), by Euler's method.

        Args:
          readout: The readout tokens of each step, (b w n d).
          noise: From `FlowMatchingConfig.draw_sampling_noise`.
        """
        config = self.config
        # (b 1 h*a): a window of one step, as the velocity network reads windows.
        x, last = noise[:, None], readout[:, -1:]
        for step in range(config.num_steps):
            time = jnp.full((*x.shape[:2], 1), step / config.num_steps)
            x = x + self.velocity(last, x, time) / config.num_steps
        x = jnp.clip(x, -config.max_action, config.max_action)
        return x.reshape(-1, config.action_horizon, config.action_dim)


def time_features(time: jax.Array) -> jax.Array:
    """Returns sines and cosines (b w 32) of a time (b w 1)."""
    periods = jnp.geomspace(*_PERIODS, _TIME_FEATURES // 2)
    angles = 2 * jnp.pi * time / periods[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
