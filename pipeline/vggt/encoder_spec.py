"""The identity of an encoder's tokens: all settings that determine them."""

import dataclasses
from typing import Literal

from pipeline.vggt.aggregator_config import NUM_SPECIAL, PATCH_SIZE, VggtConfig, vggt_1b

Views = Literal["single", "joint"]
"""`single`: each camera's image is a sequence of its own; `joint`: those of one step are one
sequence, whose reference is the first camera."""

Kept = Literal["all", "patches", "special"]
"""Tokens of a view that are kept: the camera's, the registers' and the patches'; the patches'
alone, row by row; or the first two alone."""

Resize = Literal["bicubic"]
"""`bicubic`: bitwise identical to Pillow's BICUBIC: Keys' kernel (a = -0.5), widened to shrink an
image; columns first, then rows, each rounded and clipped to integers from 0 to 255. Height and
width are scaled independently; nothing is cropped or padded."""

ComputeDtype = Literal["float32", "bfloat16"]
"""Dtype of the weights and of what enters a matrix product; sums along blocks are float32."""

Precision = Literal["default", "high", "highest"]
"""Precision of float32 matrix products in `jax.default_matmul_precision`; a CPU has only one."""


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """The identity of tokens; it is stored with them, and an encoder is built from it."""

    weights: str
    """Source of the weights: a path, `hf://owner/name/file` or `random:tiny`."""
    weights_digest: str
    """Checksum of the aggregator's tensors, as `load_weights` computed it."""
    licence: str
    """Licence of the weights; it binds the tokens as well."""
    cameras: tuple[str, ...] = ("image_primary",)
    """Observations that are the views of a step, in this order."""
    model: VggtConfig = dataclasses.field(default_factory=vggt_1b)
    """The aggregator's sizes."""
    layers: tuple[int, ...] = (23,)
    """Pairs of blocks whose output is kept, from 0, rising; later ones do not run."""
    views: Views = "single"
    """Whether cameras see each other."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels to which every image is resized, multiples of 14."""
    resize: Resize = "bicubic"
    """Method of resizing."""
    kept: Kept = "all"
    """Tokens that are kept of each view."""
    compute_dtype: ComputeDtype = "float32"
    """Dtype of the weights and the matrix products."""
    precision: Precision = "highest"
    """Precision of float32 matrix products."""

    def __post_init__(self) -> None:
        """Checks layers, cameras and size."""
        check_layers(self.layers, self.model)
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras must be named, each once, not {self.cameras}")
        if any(side < PATCH_SIZE or side % PATCH_SIZE for side in self.image_size):
            raise ValueError(f"image_size must be multiples of {PATCH_SIZE}, not {self.image_size}")

    @property
    def num_patches(self) -> int:
        """Patches of a view."""
        height, width = self.image_size
        return (height // PATCH_SIZE) * (width // PATCH_SIZE)

    @property
    def num_tokens(self) -> int:
        """Tokens of a view that are kept."""
        match self.kept:
            case "all":
                return NUM_SPECIAL + self.num_patches
            case "patches":
                return self.num_patches
            case "special":
                return NUM_SPECIAL

    @property
    def token_shape(self) -> tuple[int, int]:
        """Shape of a view's tokens: (tokens, width)."""
        return self.num_tokens, self.model.token_dim


def check_layers(layers: tuple[int, ...], model: VggtConfig) -> None:
    """Raises `ValueError` unless layers are rising numbers of the model's pairs of blocks."""
    if not layers or list(layers) != sorted(set(layers)):
        raise ValueError(f"layers must be rising numbers, not {layers}")
    if layers[0] < 0 or layers[-1] >= model.num_layers:
        raise ValueError(f"layers must be from 0 to {model.num_layers - 1}, not {layers}")
