"""A tokenizer of your own: depth images, one token for each square patch.

    from depth_tokenizer import DepthTokenizerConfig

    model = dataclasses.replace(octo_small(), tokenizers=(DepthTokenizerConfig(480, 640),))

with `depth_primary` among `DataConfig.observations`, whose batch holds it as float32 metres.

Source: the patch embedding of Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", of two
  channels: the depth, and where there is any.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from octograin import LeafSpec, TokenGroup, UserError, observation_mask


@dataclasses.dataclass(frozen=True)
class DepthTokenizerConfig:
    """A depth camera: its key in the batch, its image size, and its patches."""

    height: int
    """Height of the stored image in pixels."""
    width: int
    """Width of the stored image in pixels."""
    name: str = "depth"
    """Name of the input: its token group is `obs_<name>`."""
    observation_key: str = "depth_primary"
    """Key of the image under `observation`."""
    patch: int = 32
    """Height and width of a patch in pixels; it must divide those of the image."""
    features: int = 256
    """Size of a token, before the model projects it to its own."""
    max_depth_m: float = 2.0
    """Largest depth that counts; what is farther is read as without a reading."""

    def __post_init__(self) -> None:
        """Raises an error if the patches do not cover the image."""
        if self.height % self.patch or self.width % self.patch:
            raise UserError(
                where="DepthTokenizerConfig, patch",
                expected=f"a number that divides {self.height} and {self.width}, the image's sides",
                found=str(self.patch),
                remedy="Choose another patch, or convert the images to another size.",
            )

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        """Returns the type of an image: depth in metres, where 0 means that there is no reading."""
        return {self.observation_key: LeafSpec("float32", (self.height, self.width, 1))}

    @property
    def tokens_per_step(self) -> int:
        """Returns the number of patches."""
        return (self.height // self.patch) * (self.width // self.patch)

    def make_tokenizer(self, dtype: str) -> nn.Module:
        """Returns the module."""
        return DepthTokenizer(self, dtype)


class DepthTokenizer(nn.Module):
    """Turns each patch of a depth image into one token."""

    config: DepthTokenizerConfig
    dtype: str

    @nn.compact
    def __call__(self, observation: Mapping[str, Any], task: Mapping[str, Any]) -> TokenGroup:
        """Returns tokens (b w n features), in row-major order of the image.

        A patch without any reading is masked, as is a step that is padding.

        Args:
          observation: Has the image, float32 metres (b w height width 1).
          task: Not used.
        """
        del task
        config = self.config
        depth_m = observation[config.observation_key].astype(jnp.float32)
        has_reading = (depth_m > 0) & (depth_m <= config.max_depth_m)
        # 1 at the camera, 0 at the largest depth; a second channel tells that from no reading.
        nearness = jnp.where(has_reading, 1 - depth_m / config.max_depth_m, 0.0)
        channels = jnp.concatenate([nearness, has_reading.astype(jnp.float32)], axis=-1)
        b, w = depth_m.shape[:2]
        patch = (config.patch, config.patch)
        embed = nn.Conv(config.features, patch, strides=patch, padding="VALID", dtype=self.dtype)
        # Steps are folded into the batch: each image is embedded by itself.
        tokens = nn.gelu(embed(channels.reshape(b * w, config.height, config.width, 2)))
        rows, columns = config.height // config.patch, config.width // config.patch
        patches = has_reading.reshape(b, w, rows, config.patch, columns, config.patch)
        is_seen = patches.any(axis=(3, 5)).reshape(b, w, -1)
        is_real = observation_mask(observation, config.observation_key, config.tokens_per_step)
        return TokenGroup(tokens.reshape(b, w, -1, config.features), is_real & is_seen)
