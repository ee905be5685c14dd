"""Resizes images on any device, bitwise identical to Pillow's BICUBIC.

In whole numbers: sums of floats depend on their order, and so on the device and the batch, and a
value halfway between two would be rounded to either side.

Source: Keys 1981, "Cubic convolution interpolation for digital image processing", a = -0.5, widened
where an image shrinks and cut off at its borders; fixed-point numbers as in Pillow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

# Pillow's precision for 8 bits: a sum of taps fits into int32.
_FRACTION_BITS = 22


def bicubic_weights(length: int, new_length: int) -> Float[np.ndarray, "old new"]:
    """Returns what each old pixel gives to each new one along an axis; columns sum to 1."""
    scale = length / new_length
    centres = (np.arange(new_length) + 0.5) * scale
    # Widened where the image shrinks: each new pixel then averages all it covers.
    distance = np.abs(np.arange(length)[:, None] + 0.5 - centres) / max(scale, 1.0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    # At a border the kernel is cut off, so the rest is scaled up.
    return weights / weights.sum(axis=0)


@functools.cache
def _taps(
    length: int, new_length: int
) -> tuple[Int32[np.ndarray, "taps new"], Int32[np.ndarray, "taps new"]]:
    """The old pixels that a new one is made of, and their weights in 2^-22."""
    # Pillow rounds the weights to whole numbers too.
    weights = np.rint(bicubic_weights(length, new_length) * 2**_FRACTION_BITS).astype(np.int32)
    # The first old pixel with a weight, for each new one.
    first = (weights != 0).argmax(axis=0)
    last = length - 1 - (weights[::-1] != 0).argmax(axis=0)
    # Past a pixel's last tap the last row is read, whose weight there is 0, or counted once.
    steps = np.arange((last - first).max() + 1)[:, None]
    places = first + steps
    inside = np.minimum(places, length - 1)
    chosen = np.where(places <= last, np.take_along_axis(weights, inside, axis=0), 0)
    return inside.astype(np.int32), chosen.astype(np.int32)


def resize_bicubic(
    images: UInt8[Array, "b y x 3"], height: int, width: int
) -> UInt8[Array, "b {height} {width} 3"]:
    """Columns are fitted first, then rows, each rounded and clipped to 0 to 255."""
    # In Pillow's order: the result of the first direction is rounded before the second.
    return _fit(_fit(images, width, axis=2), height, axis=1)


def _fit(images: jax.Array, new_length: int, axis: int) -> jax.Array:
    if images.shape[axis] == new_length:
        return images
    shape = [1, 1, 1, 1]
    shape[axis] = new_length
    # Half of the unit: adding it before the shift rounds to nearest.
    total = jnp.full((), 2 ** (_FRACTION_BITS - 1), jnp.int32)
    # A loop over the few taps: no array of all products is made.
    for place, weight in zip(*_taps(images.shape[axis], new_length), strict=True):
        pixels = jnp.take(images, place, axis=axis).astype(jnp.int32)
        total = total + pixels * weight.reshape(shape)
    # The shift divides by 2 ** 22 and rounds down, also below 0.
    return jnp.clip(total >> _FRACTION_BITS, 0, 255).astype(jnp.uint8)
