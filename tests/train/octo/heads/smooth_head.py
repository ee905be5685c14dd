"""A diffusion head whose score is known: its chunks are smooth random paths."""

import jax
import jax.numpy as jnp
import numpy as np

from train.octo.heads.diffusion import DiffusionHead, ScoreNetwork, cosine_schedule
from train.octo.octo_config import DiffusionConfig

CONFIG = DiffusionConfig(action_horizon=16, action_dim=2)
EMBEDDING = jnp.zeros((1, 1, 1, 1))
_LENGTH = 4.0
"""Steps over which actions are correlated."""


def _means() -> dict[str, np.ndarray]:
    """Matrices from noisy chunks to the mean of what is predicted, each float32 (steps h h)."""
    step = np.arange(CONFIG.action_horizon)
    covariance = np.exp(-np.square((step[:, None] - step) / _LENGTH) / 2)
    kept = cosine_schedule(CONFIG.diffusion_steps).alpha_hats.astype(np.float64)[:, None, None]
    noisy = kept * covariance + (1 - kept) * np.eye(CONFIG.action_horizon)
    inverse = np.linalg.inv(noisy)
    means = {
        "noise": np.sqrt(1 - kept) * inverse,
        "action": np.sqrt(kept) * covariance @ inverse,
    }
    return {name: matrices.astype(np.float32) for name, matrices in means.items()}


_MEANS = _means()


class SmoothScore(ScoreNetwork):
    """Returns the mean of the noise, or of the actions, given noisy paths.

    No network could predict them better.
    """

    def __call__(self, readout: jax.Array, noisy_actions: jax.Array, time: jax.Array) -> jax.Array:
        x = noisy_actions
        paths = x.reshape(*x.shape[:2], CONFIG.action_horizon, CONFIG.action_dim)
        matrix = jnp.asarray(_MEANS[self.config.prediction])[time[0, 0, 0]]
        return jnp.einsum("ij,bwja->bwia", matrix, paths).reshape(x.shape)


class SmoothHead(DiffusionHead):
    """Samples normal paths of unit variance by the head's own denoising steps."""

    def setup(self) -> None:
        self.diffusion_model = SmoothScore(self.config)
