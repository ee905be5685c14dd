"""Guides a sampled chunk to actions that are already planned, so that one continues the other.

Source: Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies": the
  weights are equation 5, the guidance equations 2 to 4. There it guides a flow; here it is written
  for the diffusion that the head samples by, in which both come from Song et al. 2023,
  "Pseudoinverse-Guided Diffusion Models for Inverse Problems".
"""

import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

MAX_GUIDANCE = 5.0
"""Largest weight of the guidance: the paper's beta."""


@typing.no_type_check
@struct.dataclass
class Guide:
    """Actions that a chunk is guided to, in the model's normalised space."""

    target: jax.Array | np.ndarray
    """Planned actions, float32 `(b h a)`; any finite value where the weight is 0."""
    weights: jax.Array | np.ndarray
    """Weights, float32 `(b h a)`: 0 leaves an element free, 1 holds it to the target."""

    def flat(self, bound: float) -> "Guide":
        """Returns the guide of flattened chunks, `(b 1 h*a)`, with targets within the bound."""
        shape = (len(self.target), 1, -1)
        target = jnp.clip(self.target, -bound, bound)
        return Guide(target.reshape(shape), self.weights.reshape(shape))


def soft_mask(action_horizon: int, num_planned: int, delay: int) -> np.ndarray:
    """Returns the weight of each action of a chunk, float32 (h).

        horizon 8, 6 planned, delay 2:  1  1  0.571  0.287  0.114  0.026  0  0

    The first `delay` actions are committed. From there the weights decay to the end of what was
    planned; beyond it the chunk is free.

    Args:
      action_horizon: Number of actions per chunk.
      num_planned: Number of planned actions from the chunk's first step on.
      delay: Number of them that will be executed before the chunk takes effect.

    Source: Equation 5, in which `num_planned` is H - s.
    """
    step = np.arange(action_horizon)
    # From 1 at the last committed step to 0 behind the last planned one.
    fraction = np.clip((num_planned - step) / (num_planned - delay + 1), 0, 1)
    decayed = fraction * np.expm1(fraction) / np.expm1(1)
    return np.where(step < delay, 1, decayed).astype(np.float32)


def blend(chunk: Float[Array, "b h a"], guide: Guide) -> Float[Array, "b h a"]:
    """Returns the weighted mean of a chunk and its target, for a head that does not denoise."""
    weights = jnp.asarray(guide.weights)
    return weights * guide.target + (1 - weights) * chunk


def guided_noise(
    predict: Callable[[Any, jax.Array], jax.Array],
    network: nn.Module,
    x: Float[Array, "b w c"],
    remaining: Float[Array, ""],
    guide: Guide,
    bound: float,
) -> Float[Array, "b w c"]:
    """Returns the predicted noise with which the denoised estimate moves towards the target.

    With a = `remaining`, the fraction of variance that is left of the actions, the estimate is
    x0 = (x - sqrt(1 - a) eps) / sqrt(a). It moves by

        min(MAX_GUIDANCE, 1 / sqrt(a)) * J^T (weights * (target - x0)),    J = d x0 / d x

    Without the largest weight this adds the gradient of log p(target | x) to the score, where the
    actions are normal around x0 with the variance 1 - a: that of actions of unit variance. It is
    equation 2 of the paper, `min(beta, (1 - tau) / (tau r^2))`, for a diffusion that keeps the
    variance. Towards pure noise J grows by 1 / sqrt(a), so the weight has to be bounded there.

    Args:
      predict: Calls the network, which is passed because linen's gradients need the module.
      network: The score network.
      x: Noisy chunks.
      remaining: Fraction of the variance that is left of the actions.
      guide: The guide, as `Guide.flat` returns it.
      bound: Bound of the actions. The distance to the target is that of the clipped estimate, but
        the gradient is that of the estimate itself: estimates from nearly pure noise are outside,
        and have to be moved too.
    """
    kept, added = jnp.sqrt(remaining), jnp.sqrt(1 - remaining)

    def estimate(network: nn.Module, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        eps = predict(network, x)
        return (x - added * eps) / kept, eps

    denoised, pull_back, eps = nn.vjp(estimate, network, x, has_aux=True, vjp_variables=False)
    distance = guide.target - jnp.clip(denoised, -bound, bound)
    _, gradient = pull_back(guide.weights * distance)
    move = jnp.minimum(MAX_GUIDANCE, 1 / kept) * gradient
    return eps - kept / added * move
