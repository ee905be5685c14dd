"""Configs of the aggregator's size, and their presets."""

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
