"""Rotary positions in two dimensions: a half of each head turns with the row, one with the column.

Source: Su et al. 2021, "RoFormer"; Heo et al. 2024, "Rotary Position Embedding for Vision
Transformer".
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pipeline.vggt.aggregator_config import NUM_SPECIAL

# VGGT's base; RoFormer has 10,000 for texts.
_BASE = 100.0


def view_positions(rows: int, columns: int) -> Int[np.ndarray, "n 2"]:
    """Returns (row, column) of each token of a view.

    Patches count from 1; the camera and the registers are at (0, 0), where nothing turns. All views
    have the same positions.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    patches = np.stack([row + 1, column + 1], axis=-1)
    # Row and column 0 mean an angle of 0.
    return np.concatenate([np.zeros((NUM_SPECIAL, 2), patches.dtype), patches])


def view_angles(rows: int, columns: int, head_dim: int) -> Float[np.ndarray, "n 2 d"]:
    """Returns the angle in rad by which each pair of numbers of a head turns, float32.

    Args:
      rows: Number of rows of patches.
      columns: Number of columns of patches.
      head_dim: Numbers of a head, a multiple of 4; `d` is a quarter of it.

    Returns:
      Angles by token, by row or column, and by pair: `position * 100 ** (-i / d)`.
    """
    # A half of the head per axis, and pairs of numbers: a quarter.
    quarter = head_dim // 4
    frequencies = _BASE ** (-np.arange(quarter) / quarter)
    angles = view_positions(rows, columns)[:, :, None] * frequencies
    # Computed in float64 and rounded once.
    return angles.astype(np.float32)


def turn(
    heads: Float[Array, "b n h f"], angles: Float[np.ndarray, "n 2 d"]
) -> Float[Array, "b n h f"]:
    """Queries or keys, turned by the angles of their tokens.

    Of each half of a head, `2 * d` numbers, number `i` is paired with number `i + d`.
    """
    # (1, n, 1, 2, d): the same for every sample and head.
    cos = jnp.cos(angles)[None, :, None]
    sin = jnp.sin(angles)[None, :, None]
    # (b, n, h, axis, number of the pair, d)
    halves = heads.reshape(*heads.shape[:-1], 2, 2, angles.shape[-1])
    first, second = halves[..., 0, :], halves[..., 1, :]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return turned.reshape(heads.shape)
