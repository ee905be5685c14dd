"""Resizes a checkpoint's position embeddings for a model with other steps or tokens."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from train.octo.octo_config import OctoConfig

Layout = Literal["grid", "sequence", "fixed"]
"""What a different number of tokens means for a group. `grid`: another image size, so they are
interpolated; `sequence`: a shorter text, so the first ones are kept; `fixed`: other elements of a
vector or other geometry, so they cannot be resized."""

SUFFIX = "_pos_embedding"
"""Suffix of the paths of position embeddings."""


def layout_of(path: str, config: OctoConfig) -> Layout:
    """Returns how the tokens of a position embedding are laid out in a model."""
    group = path.removeprefix("octo_transformer/").removesuffix(SUFFIX)
    if group == "task_language":
        return "sequence"
    return "grid" if group in [f"obs_{image.name}" for image in config.images] else "fixed"


def resize_positions(values: Any, shape: tuple[int, ...], layout: Layout) -> tuple[jax.Array, str]:
    """Resizes position embeddings to another shape; returns them and a description.

    Steps at the end of the window are dropped.

    Args:
      values: Position embeddings, `(1 steps tokens d)` or `(1 tokens d)`.
      shape: The target shape.
      layout: The layout of the tokens.

    Raises:
      ValueError: There are too few steps or tokens, the tokens cannot be resized, or other axes
        differ.
    """
    array = jnp.asarray(values)
    how = []
    # Another embedding size is another model.
    if len(shape) != array.ndim or shape[0] != array.shape[0] or shape[-1] != array.shape[-1]:
        raise ValueError(f"{array.shape} and {shape} differ in more than steps and tokens")
    # Steps first: each step's tokens are then resized alike.
    if array.ndim == 4 and shape[1] != array.shape[1]:
        array, cut = _first(array, shape[1], axis=1, unit="steps")
        how.append(cut)
    trained, wanted = array.shape[-2], shape[-2]
    if wanted != trained:
        match layout:
            case "grid":
                array, fitted = _interpolate(array, wanted)
            case "sequence":
                array, fitted = _first(array, wanted, axis=-2, unit="tokens")
            case "fixed":
                raise ValueError(
                    f"{wanted} tokens are wanted, {trained} were trained, and only those of a "
                    "camera or an instruction can be fitted"
                )
        how.append(fitted)
    return array, ", ".join(how)


def _first(array: jax.Array, count: int, axis: int, unit: str) -> tuple[jax.Array, str]:
    trained = array.shape[axis]
    if count > trained:
        raise ValueError(f"{count} {unit} are wanted, {trained} were trained")
    kept = jax.lax.slice_in_dim(array, 0, count, axis=axis)
    return kept, f"the first {count} of {trained} {unit}"


def _interpolate(array: jax.Array, count: int) -> tuple[jax.Array, str]:
    """Interpolates a square grid bilinearly, with antialiasing when it shrinks."""
    *steps, trained, d = array.shape
    before, after = math.isqrt(trained), math.isqrt(count)
    if before**2 != trained or after**2 != count:
        raise ValueError(f"{trained} and {count} tokens are not square grids")
    grid = array.reshape(*steps, before, before, d)
    # The leading axes have the same sizes, and are not interpolated.
    resized = jax.image.resize(grid, (*steps, after, after, d), "bilinear", antialias=True)
    how = f"{before}x{before} tokens to {after}x{after}, bilinear"
    return resized.reshape(*steps, count, d), how
