"""VGGT in miniature: its aggregator, and two heads whose losses train it.

    images (b, v, y, x, 3) -> aggregator -> tokens of the last layer (b, v, n, 2c)
    patches       -> depth and its confidence, 14 x 14 pixels each   (b, v, y, x)
    camera token  -> the pose relative to the first view             (b, v, 8)

The heads are as small as heads can be, so that what they predict lies in the tokens: a policy reads
those, and the heads are dropped.

Source: Wang et al. 2025, "VGGT: Visual Geometry Grounded Transformer". Differences: VGGT's depth
head is a DPT on four layers and its camera head a transformer, a linear map and a perceptron here;
there are no point maps and no tracks; lengths stay in m, where VGGT divides by the scene's size,
because a robot acts in m; depth errs by its logarithm, because what the hand's camera sees is ten
times nearer than the rest; a quaternion and its negative are one target, because the hand's camera
is turned by about half a turn; the backbone is trained without DINOv2's weights.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from examples.geometry_encoder.cameras import POSE_DIM, QUATERNION
from pipeline.vggt.aggregator import Aggregator
from pipeline.vggt.blocks import EPSILON, LayerNorm
from pipeline.vggt.encoder_spec import NUM_SPECIAL, PATCH_SIZE, VggtConfig

CONFIDENCE_WEIGHT = 0.2
"""Weight of the logarithm of the confidence, which keeps it from vanishing.

Source: Wang et al. 2024, "DUSt3R".
"""
CAMERA_WEIGHT = 5.0
"""Weight of the camera loss beside the depth loss."""
FAR_M = 4.0
"""Depth beyond this is not learned: walls far behind the robot."""
_HUBER = 0.1

Depth = Float[Array, "b v y x"]


class Prediction(NamedTuple):
    """What the heads read from the tokens."""

    depth_m: jax.Array
    """float32 (b, v, y, x): distance along the camera's axis."""
    confidence: jax.Array
    """float32 (b, v, y, x), at least 1."""
    pose: jax.Array
    """float32 (b, v, 8): `Cameras.encoded`, relative to the first view."""


class GeometryModel(nn.Module):
    """The aggregator with its heads; the parameters `aggregator` are those of `Aggregator`."""

    config: VggtConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b v y x 3"]) -> Any:
        """Returns the `Prediction` for views of one moment, from 0 to 1.

        Args:
          images: The first view is the reference of the others' poses.
        """
        last = self.config.num_layers - 1
        tokens = Aggregator(self.config, (last,), name="aggregator")(images)[last]
        tokens = LayerNorm(epsilon=EPSILON, name="norm")(tokens)
        # The heads start at zero: as constants of 1 m, and without wild first gradients.
        start = nn.initializers.zeros
        patches = tokens[:, :, NUM_SPECIAL:]
        logits = nn.Dense(2 * PATCH_SIZE**2, kernel_init=start, name="depth")(patches)
        depth, confidence = to_images(logits, images.shape[2] // PATCH_SIZE)
        hidden = nn.gelu(nn.Dense(self.config.token_dim, name="camera_hidden")(tokens[:, :, 0]))
        pose = nn.Dense(POSE_DIM, kernel_init=start, name="camera")(hidden)
        return Prediction(jnp.exp(depth), 1 + jnp.exp(confidence), pose)


def to_images(
    logits: Float[Array, "b v n p"], rows: int
) -> tuple[Float[Array, "b v y x"], Float[Array, "b v y x"]]:
    """Two images from two numbers for each pixel of each patch; patches row by row."""
    b, v, n, _ = logits.shape
    columns = n // rows
    cut = logits.reshape(b, v, rows, columns, PATCH_SIZE, PATCH_SIZE, 2)
    # (b, v, rows, 14, columns, 14, 2): a row of pixels lies together.
    laid = cut.swapaxes(3, 4).reshape(b, v, rows * PATCH_SIZE, columns * PATCH_SIZE, 2)
    return laid[..., 0], laid[..., 1]


def losses(prediction: Any, depth_m: Depth, pose: Float[Array, "b v 8"]) -> dict[str, jax.Array]:
    """The losses `depth`, `camera` and their weighted sum `loss`, float32 scalars.

    Args:
      prediction: A `Prediction`.
      depth_m: True depth; 0 where there is none.
      pose: True poses relative to the first view.
    """
    depth = depth_loss(prediction.depth_m, prediction.confidence, depth_m)
    nearer = nearer_sign(prediction.pose, pose)
    camera = jnp.mean(optax.huber_loss(prediction.pose, nearer, delta=_HUBER))
    return {"loss": depth + CAMERA_WEIGHT * camera, "depth": depth, "camera": camera}


def nearer_sign(
    predicted: Float[Array, "b v 8"], pose: Float[Array, "b v 8"]
) -> Float[Array, "b v 8"]:
    """The true poses, with the one of both quaternions of each rotation that is nearer."""
    parts = (predicted[..., QUATERNION] * pose[..., QUATERNION]).sum(axis=-1, keepdims=True)
    return pose.at[..., QUATERNION].multiply(jnp.where(parts < 0, -1.0, 1.0))


def depth_loss(predicted_m: Depth, confidence: Depth, depth_m: Depth) -> Float[Array, ""]:
    """The error of log depth and of its slopes, weighted by the confidence.

    Source: the depth loss of Wang et al. 2025, with L1 norms, on logarithms.
    """
    real = is_real(depth_m)
    error = jnp.log(predicted_m) - jnp.log(jnp.where(real, depth_m, 1.0))
    total = jnp.abs(error)
    for axis in (2, 3):
        # Slopes between neighbours that are both real, counted at the first of the two.
        both = real & jnp.roll(real, -1, axis)
        both = both & (jnp.arange(real.shape[axis]) < real.shape[axis] - 1).reshape(
            [-1 if a == axis else 1 for a in range(4)]
        )
        total = total + jnp.where(both, jnp.abs(jnp.roll(error, -1, axis) - error), 0.0)
    weighted = confidence * total - CONFIDENCE_WEIGHT * jnp.log(confidence)
    return jnp.sum(jnp.where(real, weighted, 0.0)) / jnp.maximum(real.sum(dtype=jnp.float32), 1.0)


def is_real(depth_m: Depth) -> Bool[Array, "b v y x"]:
    """Where there is depth to learn."""
    return (depth_m > 0) & (depth_m < FAR_M)
