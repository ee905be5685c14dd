"""Randomly augments the camera images, inside the jitted training step.

Every draw depends only on a key, the camera and the sample's index, and is independent of the
others. All images of a sample's window, and its goal image, get the same augmentation: to the
policy they come from one camera.

Source: Octo's operations, in Octo's order and ranges. Octo uses one random number for all draws of
a frame; here each has its own.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from train.train_config import AugmentConfig

_SATURATION_FLOOR = 1e-12
"""A floor below any difference of float32 colours; it keeps grey pixels from dividing by zero."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random values drawn for each sample and camera; all are float32 (b)."""

    top: jax.Array
    """Upper edge of the crop, as a fraction of the image height."""
    left: jax.Array
    """Left edge of the crop, as a fraction of the image width."""
    height: jax.Array
    """Height of the crop, as a fraction of the image height."""
    width: jax.Array
    """Width of the crop, as a fraction of the image width."""
    brightness: jax.Array
    """Added to every colour, whose range is [0, 1]."""
    contrast: jax.Array
    """Factor that scales each colour's distance from the image's mean colour."""
    saturation: jax.Array
    """Factor that scales the saturation."""
    hue: jax.Array
    """Rotation of the hue, as a fraction of the full circle."""


def augment(
    batch: dict[str, Any],
    config: AugmentConfig,
    cameras: Sequence[str],
    cropped: Sequence[str],
    key: jax.Array,
) -> dict[str, Any]:
    """Returns the batch with augmented images in the window and the goal.

    Args:
      batch: The batch; it has uint8 images with their `pad_mask_dict`, and `sample_index`.
      config: The ranges of the draws.
      cameras: Names of the cameras to augment.
      cropped: Names of those cameras whose images are also cropped.
      key: A jax key, the same in every training step of a run.
    """
    parts = {part: dict(batch[part]) for part in ("observation", "task")}
    for camera in cameras:
        # CRC-32 and not `hash`, which differs between processes. Each camera draws on its own.
        camera_key = jax.random.fold_in(key, zlib.crc32(camera.encode()))
        # By sample, not by row: the batch size and the number of devices change no draw.
        draws = draw(config, camera_key, batch["sample_index"])
        for part in parts.values():
            if camera in part:
                # The window and the goal image share the draws: they come from one camera.
                changed = apply(part[camera], draws, crops=camera in cropped)
                part[camera] = _where_real(part["pad_mask_dict"][camera], changed, part[camera])
    return batch | parts


def draw(config: AugmentConfig, key: jax.Array, sample_index: Int[Array, " b"]) -> Draws:
    """Returns the draws of each sample, which depend only on the key and its own index."""
    # `fold_in` takes uint32.
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sample_index.astype(jnp.uint32))
    # (b, 8), transposed to unpack one row per draw.
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (8,)))(keys).T
    top, left, height, width = crop_box(uniform[:4], config.crop_scale, config.crop_ratio)
    return Draws(
        top=top,
        left=left,
        height=height,
        width=width,
        brightness=_within(uniform[4], (-config.brightness, config.brightness)),
        contrast=_within(uniform[5], config.contrast),
        saturation=_within(uniform[6], config.saturation),
        hue=_within(uniform[7], (-config.hue, config.hue)),
    )


def crop_box(
    uniform: Float[Array, "4 b"], scale_range: tuple[float, float], ratio_range: tuple[float, float]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns (top, left, height, width) of crops, as fractions of the image; float32 (b) each.

    Args:
      uniform: Four numbers in [0, 1) for each box: where its area lies in `scale_range`; where its
        width over height lies in `ratio_range`, on a logarithmic scale; its vertical and its
        horizontal position within the room that is left.
      scale_range: Smallest and largest area.
      ratio_range: Smallest and largest width over height.
    """
    scale, ratio, top, left = uniform
    area = _within(scale, scale_range)
    low, high = jnp.log(jnp.asarray(ratio_range, jnp.float32))
    aspect = jnp.exp(low + ratio * (high - low))
    # Clipped, because an area of 1 with a ratio other than 1 is wider than the image.
    height = jnp.clip(jnp.sqrt(area / aspect), 0.0, 1.0)
    width = jnp.clip(jnp.sqrt(area * aspect), 0.0, 1.0)
    # Positions within the room that is left, so the box never leaves the image.
    return top * (1.0 - height), left * (1.0 - width), height, width


def apply(images: UInt8[Array, "b *w y x 3"], draws: Draws, *, crops: bool) -> jax.Array:
    """Returns the images with each sample's draws applied: uint8 of the same shape.

    Colours are clipped to their range after every operation, as in Octo.
    """
    # A goal image has no window axis; it gets one of size 1.
    single = images if images.ndim == 5 else images[:, None]
    x = single.astype(jnp.float32) / 255.0
    if crops:
        box = jnp.stack([draws.top, draws.left, draws.height, draws.width], axis=-1)
        # Interpolation may leave the range by rounding.
        x = jnp.clip(crop_and_resize(x, box), 0.0, 1.0)
    # Octo's order: brightness, contrast, saturation, hue, clipped after each.
    x = jnp.clip(x + _per_sample(draws.brightness), 0.0, 1.0)
    x = jnp.clip(adjust_contrast(x, _per_sample(draws.contrast)), 0.0, 1.0)
    x = jnp.clip(adjust_saturation(x, _per_sample(draws.saturation)), 0.0, 1.0)
    x = jnp.clip(adjust_hue(x, _per_sample(draws.hue)), 0.0, 1.0)
    return to_uint8(x).reshape(images.shape)


def to_uint8(images: Float[Array, "*b y x 3"]) -> UInt8[Array, "*b y x 3"]:
    """Converts [0, 1] to grey levels; an unchanged image keeps its exact values.

    Source: `tf.image.convert_image_dtype`.
    """
    # With 255 a grey level n that rounding moved below n / 255 would become n - 1.
    return jnp.floor(images * 255.5).astype(jnp.uint8)


def crop_and_resize(
    images: Float[Array, "b w y x 3"], boxes: Float[Array, "b 4"]
) -> Float[Array, "b w y x 3"]:
    """Crops a box from each image and resizes it to the image's size by bilinear interpolation.

    Args:
      images: Colours of any range.
      boxes: Top, left, height and width for each sample, as fractions of the image. Distances run
        from the center of the first pixel to the center of the last.

    Source: `tf.image.crop_and_resize`.
    """

    def one(window: jax.Array, box: jax.Array) -> jax.Array:
        rows = _sample_points(box[0], box[2], window.shape[1])
        columns = _sample_points(box[1], box[3], window.shape[2])
        # Columns, then rows: the interpolation is separable.
        across = _interpolate(window, *columns, axis=2)
        return _interpolate(across, *rows, axis=1)

    return jax.vmap(one)(images, boxes)


def adjust_contrast(
    images: Float[Array, "b w y x 3"], factor: Float[Array, "b 1 1 1 1"]
) -> Float[Array, "b w y x 3"]:
    """Scales the distance of each colour from the mean colour of its image."""
    # Over rows and columns: each image and channel has its own mean.
    mean = jnp.mean(images, axis=(-3, -2), keepdims=True)
    return (images - mean) * factor + mean


def adjust_saturation(
    images: Float[Array, "b w y x 3"], factor: Float[Array, "b 1 1 1 1"]
) -> Float[Array, "b w y x 3"]:
    """Multiplies the HSV saturation of images in [0, 1], up to 1."""
    value = jnp.max(images, axis=-1, keepdims=True)
    chroma = value - jnp.min(images, axis=-1, keepdims=True)
    saturation = chroma / jnp.maximum(value, _SATURATION_FLOOR)
    wanted = jnp.minimum(saturation * factor, 1.0)
    # The distance from the brightest channel grows with the saturation; the hue does not change.
    share = (value - images) / jnp.maximum(chroma, _SATURATION_FLOOR)
    return value - share * wanted * value


def adjust_hue(
    images: Float[Array, "b w y x 3"], turn: Float[Array, "b 1 1 1 1"]
) -> Float[Array, "b w y x 3"]:
    """Rotates the HSV hue of images in [0, 1] by a fraction of the circle."""
    red, green, blue = (images[..., i] for i in range(3))
    value = jnp.max(images, axis=-1)
    chroma = value - jnp.min(images, axis=-1)
    divisor = jnp.maximum(chroma, _SATURATION_FLOOR)
    # Not `value == red`: a compiler that computes the maximum in another program than the channel
    # may round them differently, and the hue would be that of another channel.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    hue = (sextant / 6.0 + turn[..., 0]) % 1.0
    # A channel is at its maximum within a sixth of its hue, at 0 beyond a third, linear between.
    offsets = jnp.asarray([0.0, 1.0 / 3.0, 2.0 / 3.0], jnp.float32)
    distance = jnp.abs((hue[..., None] - _broadcast(offsets, hue) + 0.5) % 1.0 - 0.5)
    share = jnp.clip(2.0 - 6.0 * distance, 0.0, 1.0)
    return (value - chroma)[..., None] + share * chroma[..., None]


def _broadcast(offsets: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(offsets, (*like.shape, 3))


def _sample_points(
    start: jax.Array, extent: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (index below, index above, weight above) of `size` points on an axis of that size."""
    # The centers of the corner pixels are 0 and size - 1, as TensorFlow counts them.
    points = start * (size - 1) + jnp.arange(size, dtype=jnp.float32) * extent
    below = jnp.clip(jnp.floor(points), 0, size - 1)
    # The last pixel has no neighbour; its weight is 0.
    above = jnp.minimum(below + 1.0, size - 1.0)
    return below.astype(jnp.int32), above.astype(jnp.int32), points - below


def _interpolate(
    window: jax.Array, below: jax.Array, above: jax.Array, weight: jax.Array, *, axis: int
) -> jax.Array:
    low, high = (jnp.take(window, index, axis=axis) for index in (below, above))
    shape = [1] * window.ndim
    shape[axis] = -1
    return low + (high - low) * weight.reshape(shape)


def _within(uniform: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    low, high = bounds
    return low + uniform * (high - low)


def _per_sample(values: jax.Array) -> jax.Array:
    """Reshapes (b) to (b 1 1 1 1)."""
    return values[:, None, None, None, None]


def _where_real(mask: jax.Array, changed: jax.Array, images: jax.Array) -> jax.Array:
    """Returns `changed` where an image is real; a missing one stays black."""
    if images.ndim == 5:
        # A camera may be read for the last steps of the window alone.
        mask = mask[:, mask.shape[1] - images.shape[1] :]
    # (b, w) becomes (b, w, 1, 1, 1), and (b) of a goal image (b, 1, 1, 1).
    return jnp.where(jnp.expand_dims(mask, (-3, -2, -1)), changed, images)
