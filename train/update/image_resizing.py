"""Resizes images on the device, in training and at rollout."""

import jax
import jax.numpy as jnp


def resize_images(images: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes images and rounds them back to uint8; runs inside the jitted training step.

    Args:
      images: uint8 (... y x 3).
      height: Height of the result, uint8 (... height width 3).
      width: Its width.

    Source: `tf.image.resize` with lanczos3 and antialiasing, then round and clip, as in Octo.
    """
    if images.shape[-3:-1] == (height, width):
        # Exact: resizing to the same size would still round.
        return images
    shape = (*images.shape[:-3], height, width, 3)
    # jax antialiases by default as well; it is spelled out because Octo's pixels depend on it.
    resized = jax.image.resize(images.astype(jnp.float32), shape, "lanczos3", antialias=True)
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
