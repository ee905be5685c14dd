"""The action head that predicts a chunk at once, without noise.

Source: Octo's `L1ActionHead` and `MSEActionHead`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from train.octo.heads.diffusion import masked_mean
from train.octo.heads.pooling import MapHead
from train.octo.octo_config import RegressionConfig


class RegressionHead(nn.Module):
    """Predicts the mean of a chunk of actions, and computes its loss."""

    config: RegressionConfig

    def setup(self) -> None:
        """Names the submodules as in the released weights."""
        if self.config.pooling == "map":
            self.map_head = MapHead()
        self.mean_proj = nn.Dense(self.config.flat_dim)

    def embed(self, readout: Float[Array, "b w n d"]) -> Float[Array, "b w d"]:
        """Pools the readout tokens of each step to one embedding."""
        return self.map_head(readout) if self.config.pooling == "map" else readout.mean(axis=2)

    def predict(self, readout: Float[Array, "b w n d"]) -> Float[Array, "b w h a"]:
        """Predicts the normalised actions after each step, within [-max_action, max_action]."""
        bound = self.config.max_action
        # Linear near 0 and bounded by max_action, as in Octo.
        mean = bound * jnp.tanh(self.mean_proj(self.embed(readout)) / bound)
        chunk = (self.config.action_horizon, self.config.action_dim)
        # (b, w, h, a)
        return mean.reshape(*mean.shape[:2], *chunk)

    def loss(
        self,
        readout: Float[Array, "b w n d"],
        action: Float[Array, "b w h a"],
        mask: Bool[Array, "b w h a"],
        noise: None,
    ) -> Float[Array, ""]:
        """Returns the mean absolute or squared error, times `action_dim`.

        Args:
          readout: The readout tokens of each step.
          action: Normalised actions.
          mask: True where an action is real.
          noise: None; the head uses no noise.
        """
        del noise
        difference = self.predict(readout) - action
        error = jnp.abs(difference) if self.config.error == "l1" else jnp.square(difference)
        # A mean over the dimensions times their number, as in Octo.
        return masked_mean(error, mask) * self.config.action_dim

    def sample(self, readout: Float[Array, "b w n d"], noise: None) -> Float[Array, "b h a"]:
        """Returns the normalised actions of the last step of the window."""
        del noise
        # The last step of the window acts.
        return self.predict(readout)[:, -1]
