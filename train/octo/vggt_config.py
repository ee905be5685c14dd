"""Geometry tokens in the config: what is read of them, and the six ways in which they are used."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from pipeline.checks import check, check_positive

Fusion = Literal["tokens", "features", "registers", "gated", "only", "align"]
"""How geometry tokens enter the model.

`tokens`: a group of their own beside the cameras', which the transformer attends to as to any
other. Nothing is assumed about where a token lies, and the sequence grows by all of them. From the
first step on attention is shared with them, so a pretrained model starts elsewhere than it was.
Source: what Geo-Octo does with the tokens of a frame.

`features`: each patch's features joined to those of the camera's token at its place, the grid of
the patches resized to that of the camera. A projection of joined features is a sum of two: the
camera's is the pretrained one, that of the geometry starts at zero and is added. So step 0 is the
model without tokens, and the geometry's share is the same linear map for every image. Source: two
encoders' patches joined number by number, as in Kim et al. 2024, "OpenVLA"; the zero start as in
Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".

`registers`: the camera token and the registers alone, a group of a few tokens. They hold what the
encoder keeps of the whole frame: where the camera is, and what has no place. Source: Darcet et al.
2023, "Vision Transformers Need Registers"; a policy that reads them beside the patches: Ge et al.
2025, "VGGT-DP".

`gated`: a residual onto the camera's tokens, times a gate that each token's image and geometry
decide, for each of its numbers. The gate is a tanh that starts at zero: step 0 is the model without
tokens, and unlike in `features` the share of the geometry depends on what is seen. Source: the tanh
gate of Alayrac et al. 2022, "Flamingo"; a gate conditioned on semantics was the best of nine ways
for VGGT in Yu et al. 2026, "3D-Mix for VLA". There the gate sees the language model's state; here
it sees the token alone.

`only`: a group of their own in place of the camera's, whose image is then not read at all. It
tells what the geometry knows by itself, and saves the camera's stem. The camera's pretrained
weights stay unused. Source: policies on frozen visual features alone, as Nair et al. 2022, "R3M".

`align`: at training, a loss that draws the transformer's output for the camera towards the patch
tokens at the same places, one less the cosine. They are no input: the action loss of step 0 and
every sampled action are those of the model without tokens, and a rollout runs no encoder. Source:
Li et al. 2025, "Spatial Forcing"; there an intermediate layer is aligned, here the last, and the
targets have no position added.
"""

Reduction = Literal["none", "project", "token_learner", "pool"]
"""What is done to tokens before they enter.

`none`: nothing. `project`: fewer numbers a token, by a dense layer and a GELU; with the projection
to the transformer's size that follows it is a perceptron of two layers. Source: Liu et al. 2023,
"Improved Baselines with Visual Instruction Tuning". `token_learner`: a few tokens, each a mean of
all of a step, by weights that a perceptron gives every token. Source: Ryoo et al. 2021,
"TokenLearner", with the perceptron and softmax of its version 1.1. `pool`: the grid of patches
resized to a smaller square, linearly and antialiased; special tokens stay as they are.
"""

NUM_SPECIAL = 5
"""Of a frame: the camera token, then four registers."""

_REDUCTIONS: Mapping[Fusion, tuple[Reduction, ...]] = {
    "tokens": ("none", "project", "token_learner", "pool"),
    "features": ("none", "project"),
    "registers": ("none", "project"),
    "gated": ("none", "project"),
    "only": ("none", "project", "token_learner", "pool"),
    "align": ("none",),
}
"""Those that leave the tokens where the fusion looks for them."""


@dataclasses.dataclass(frozen=True)
class VGGTTokenizerConfig:
    """Geometry tokens of one view that were computed offline, and how they are used."""

    num_tokens: int
    """Tokens a step, as the column declares."""
    token_dim: int
    """Size of a token, as the column declares."""
    observation_key: str = "vggt_tokens"
    """Key of the tokens under `observation`."""
    name: str = "vggt"
    """Names the token group `obs_<name>` and the parameters."""
    fusion: Fusion = "tokens"
    """How they enter: `tokens` beside the cameras' or, of `registers`, the first few; `features` or
    `gated` onto the camera's; `only` in their place; `align` as a loss at training alone."""
    camera: str = "primary"
    """Name of the camera that they were computed from; of features, gated, only and align."""
    reduction: Reduction = "none"
    """What is done to them first: `project` each to fewer numbers, learn a few (`token_learner`),
    or `pool` the patches."""
    reduced_to: int | None = None
    """Numbers of a token after `project`, tokens after `token_learner`, patches after `pool`."""
    more_layers: tuple[str, ...] = ()
    """Keys of the same view's tokens from other layers of the encoder, of the same shape. Each is
    normalised by itself, and the features of a token are joined."""
    num_special: int = NUM_SPECIAL
    """Tokens before the patches: camera and registers; 0 where the column has patches alone."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches; None: a square."""
    align_weight: float = 0.5
    """Of the alignment loss, whose range is 0 to 2, beside the head's loss; of `align` alone."""

    def __post_init__(self) -> None:
        """Checks the ranges, and that the tokens are of the kinds that their use needs."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "num_tokens", "token_dim")
        if self.num_special < 0:
            yield f"num_special must be at least 0, not {self.num_special}"
        if not 0 < self.align_weight < math.inf:
            yield f"align_weight must be above 0 and finite, not {self.align_weight}"
        if len(set(self.keys)) < len(self.keys):
            yield f"more_layers of {self.name!r} reads one key twice: {self.keys}"
        yield from self._check_reduction()
        if self.fusion == "registers" and not 0 < self.num_special <= self.num_tokens:
            yield (
                f"fusion 'registers' of {self.name!r} reads the num_special {self.num_special} "
                f"first of num_tokens {self.num_tokens}"
            )
        if self.fusion in ("features", "gated", "align") or self.reduction == "pool":
            yield from self._check_grid()

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all tokens that are read under `observation`, a layer each."""
        return (self.observation_key, *self.more_layers)

    @property
    def is_input(self) -> bool:
        """Whether the model reads them to act, and not at training alone."""
        return self.fusion != "align"

    @property
    def num_group_tokens(self) -> int:
        """Tokens a step of a group of their own; 0: they have none."""
        if self.fusion not in ("tokens", "registers", "only"):
            return 0
        if self.reduction == "pool":
            return self.num_special + (self.reduced_to or 0)
        if self.reduction == "token_learner":
            return self.reduced_to or 0
        return self.num_special if self.fusion == "registers" else self.num_tokens

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        side = math.isqrt(max(self.num_tokens - self.num_special, 0))
        return self.grid or (side, side)

    def _check_reduction(self) -> Iterator[str]:
        if self.reduction not in _REDUCTIONS[self.fusion]:
            yield (
                f"reduction {self.reduction!r} does not fit fusion {self.fusion!r} of "
                f"{self.name!r}, which takes {', '.join(_REDUCTIONS[self.fusion])}"
            )
        if (self.reduction == "none") != (self.reduced_to is None):
            yield (
                f"reduction {self.reduction!r} of {self.name!r} and reduced_to {self.reduced_to}: "
                "a reduction needs its size, and none has one"
            )
        if self.reduced_to is None:
            return
        yield from check_positive(self, "reduced_to")
        size = self.token_dim if self.reduction == "project" else self.num_tokens
        if self.reduction == "project":
            size *= len(self.keys)
        if self.reduced_to >= size:
            yield (
                f"reduced_to {self.reduced_to} of {self.name!r} is no less than the {size} that "
                f"{self.reduction!r} begins with"
            )
        if self.reduction == "pool" and math.isqrt(self.reduced_to) ** 2 != self.reduced_to:
            yield f"reduced_to {self.reduced_to} of {self.name!r} is no square grid"

    def _check_grid(self) -> Iterator[str]:
        rows, columns = self.patch_grid
        patches = self.num_tokens - self.num_special
        if rows < 1 or columns < 1 or rows * columns != patches:
            shape = "no square" if self.grid is None else f"not grid {rows} x {columns}"
            yield (
                f"num_tokens {self.num_tokens} of {self.name!r} less num_special "
                f"{self.num_special} are {patches} patches, {shape}: set num_special or grid"
            )


def replaced_cameras(geometry: Sequence[VGGTTokenizerConfig]) -> set[str]:
    """Returns the names of the cameras in whose place geometry tokens stand."""
    return {vggt.camera for vggt in geometry if vggt.fusion == "only"}


def check_cameras(
    geometry: Sequence[VGGTTokenizerConfig], cameras: Collection[str]
) -> Iterator[str]:
    """Yields each problem of geometry tokens that are to meet a camera that there is not.

    Args:
      geometry: Of a model.
      cameras: Names of its cameras, replaced ones included.
    """
    replaced = replaced_cameras(geometry)
    for vggt in geometry:
        if vggt.fusion in ("tokens", "registers"):
            continue
        if vggt.camera not in cameras:
            yield (
                f"fusion {vggt.fusion!r} of {vggt.name!r} needs camera {vggt.camera!r}, images "
                f"has only {', '.join(cameras) or 'none'}"
            )
        elif vggt.fusion != "only" and vggt.camera in replaced:
            yield (
                f"fusion {vggt.fusion!r} of {vggt.name!r} needs camera {vggt.camera!r}, in whose "
                "place fusion 'only' puts other tokens"
            )
