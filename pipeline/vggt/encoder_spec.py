"""The identity of an encoder's tokens: the sizes of its model and all settings of the encoder."""

import dataclasses
from typing import Literal

PATCH_SIZE = 14
"""Pixels along one side of a patch."""

NUM_REGISTERS = 4
"""Register tokens of a view; the backbone has as many of its own, which end inside it."""

NUM_SPECIAL = 1 + NUM_REGISTERS
"""Tokens of a view before its patches: the camera, then the registers."""

MLP_RATIO = 4
"""Hidden size of a block's MLP over the size of a token."""

Embedder = Literal["dino", "conv"]
"""`dino`: DINOv2 with registers; `conv`: its first convolution alone."""


@dataclasses.dataclass(frozen=True)
class VggtConfig:
    """The sizes of an aggregator; the defaults are those of VGGT-1B.

    Source: Wang et al. 2025, "VGGT: Visual Geometry Grounded Transformer"; Oquab et al. 2023,
    "DINOv2"; Darcet et al. 2023, "Vision Transformers Need Registers".
    """

    dim: int = 1024
    """Size of a token inside; tokens that come out have twice as much, a half of each attention."""
    num_layers: int = 24
    """Pairs of a block that attends within each view and one that attends across them."""
    num_heads: int = 16
    """Attention heads of these blocks; four divide into each head's size."""
    embedder: Embedder = "dino"
    """What makes tokens of patches."""
    dino_layers: int = 24
    """Blocks of the backbone; 0 with `conv`."""
    dino_heads: int = 16
    """Attention heads of the backbone; 0 with `conv`."""
    position_grid: int = 37
    """Patches along one side of the grid that the backbone has positions for; others are resized
    from it. 37: images of 518 x 518."""

    def __post_init__(self) -> None:
        """Checks the ranges, and that the heads divide the tokens."""
        for name in ("dim", "num_layers", "num_heads", "position_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} is no multiple of 4 times num_heads {self.num_heads}: positions "
                "turn pairs of numbers, by row and by column"
            )
        self._check_backbone()

    def _check_backbone(self) -> None:
        if self.embedder == "conv":
            if self.dino_layers or self.dino_heads:
                raise ValueError(
                    f"embedder is conv, but dino_layers is {self.dino_layers} and dino_heads is "
                    f"{self.dino_heads}: set both to 0"
                )
        elif self.dino_layers < 1 or self.dino_heads < 1 or self.dim % self.dino_heads:
            raise ValueError(
                f"dino_layers {self.dino_layers} and dino_heads {self.dino_heads} must be at least "
                f"1, and the heads divide dim {self.dim}"
            )

    @property
    def token_dim(self) -> int:
        """Width of an output token."""
        return 2 * self.dim


def vggt_1b() -> VggtConfig:
    """VGGT-1B: 909,112,320 parameters, tokens of width 2048."""
    return VggtConfig()


def tiny() -> VggtConfig:
    """A model for tests and demos: tokens of width 64, 21 of them at 56 x 56 pixels."""
    return VggtConfig(
        dim=32, num_layers=2, num_heads=2, dino_layers=1, dino_heads=2, position_grid=4
    )


# --- the encoder

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
