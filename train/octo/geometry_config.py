"""Config of geometry tokens: which tokens are read, and the six ways to use them."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from pipeline.config_checks import Problem, check, check_positive
from pipeline.loading.batch import LeafSpec

Fusion = Literal["tokens", "features", "registers", "gated", "only", "align"]
"""How geometry tokens enter the model.

`tokens`: a group of their own beside the cameras', which the transformer attends to like any other.
  Nothing is assumed about a token's position, and the sequence grows by all of them. They share the
  attention from the first training step on, so a pretrained model starts from other outputs.
  Source: how Geo-Octo uses the tokens of a frame.

`features`: each patch's features are joined to those of the camera's token at the same position;
  the patch grid is resized to the camera's. A projection of joined features is a sum of two: the
  camera's is the pretrained one, and the geometry's, which starts at zero, is added. So training
  step 0 is the model without tokens, and the geometry's contribution is the same linear map for
  every image. Source: joined patches of two encoders, as in Kim et al. 2024, "OpenVLA"; the zero
  start as in Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".

`registers`: only the camera token and the registers, as a group of a few tokens. They hold what the
  encoder stores about the whole frame: the camera's position, and everything without a position in
  the image. Source: Darcet et al. 2023, "Vision Transformers Need Registers"; a policy that reads
  them beside the patches: Ge et al. 2025, "VGGT-DP".

`gated`: a residual added to the camera's tokens, times a gate for each feature that depends on the
  token's image and geometry. The gate is a tanh that starts at zero: training step 0 is the model
  without tokens, and unlike in `features` the geometry's contribution depends on the observation.
  Source: the tanh gate of Alayrac et al. 2022, "Flamingo"; a gate conditioned on semantics was the
  best of nine ways for VGGT in Yu et al. 2026, "3D-Mix for VLA". There the gate reads the language
  model's state; here it reads only the token.

`only`: a group of their own that replaces the camera's tokens; the image is not read. It shows what
  the geometry provides by itself, and saves the camera's stem. The camera's pretrained weights stay
  unused. Source: policies on frozen visual features alone, as in Nair et al. 2022, "R3M".

`align`: a training loss, 1 minus the cosine, that draws the transformer's output for the camera
  towards the patch tokens at the same positions. They are not an input: the action loss of training
  step 0 and every sampled action are those of the model without tokens, and a rollout runs no
  encoder. Source: Li et al. 2025, "Spatial Forcing"; there an intermediate layer is aligned, here
  the last, and the targets have no position embeddings added.
"""

Reduction = Literal["none", "project", "token_learner", "pool"]
"""How tokens are reduced before they enter the model.

`none`: not at all. `project`: fewer features per token, by a dense layer and a GELU; with the
  projection to the transformer's size that follows, it is a perceptron of two layers. Source: Liu
  et al. 2023, "Improved Baselines with Visual Instruction Tuning". `token_learner`: a few tokens,
  each a mean of all tokens of a step, with weights from a perceptron. Source: Ryoo et al. 2021,
  "TokenLearner", with the perceptron and softmax of its version 1.1. `pool`: the patch grid resized
  to a smaller square, linearly and antialiased; special tokens are unchanged.
"""

NUM_SPECIAL = 5
"""Number of special tokens in a frame: the camera token, then four registers."""

_REDUCTIONS: Mapping[Fusion, tuple[Reduction, ...]] = {
    "tokens": ("none", "project", "token_learner", "pool"),
    "features": ("none", "project"),
    "registers": ("none", "project"),
    "gated": ("none", "project"),
    "only": ("none", "project", "token_learner", "pool"),
    "align": ("none",),
}
"""Reductions that keep the tokens where the fusion expects them."""


@dataclasses.dataclass(frozen=True)
class VGGTTokenizerConfig:
    """Geometry tokens of one view, computed offline, and how they are used."""

    num_tokens: int
    """Number of tokens per step in the dataset's column."""
    token_dim: int
    """Size of a token in the dataset's column."""
    observation_key: str = "vggt_tokens"
    """Key of the tokens under `observation`."""
    name: str = "vggt"
    """Name of the tokens: their token group is `obs_<name>`."""
    fusion: Fusion = "tokens"
    """How the tokens enter the model: `tokens` beside the cameras' or, with `registers`, only the
    first few; `features` or `gated` added to the camera's; `only` instead of the camera's; `align`
    as a training loss."""
    camera: str = "primary"
    """Name of the camera that they were computed from; used by features, gated, only and align."""
    reduction: Reduction = "none"
    """How the tokens are reduced first: `project` each to fewer features, learn a few tokens
    (`token_learner`), or `pool` the patches."""
    reduced_to: int | None = None
    """Features per token after `project`, tokens after `token_learner`, patches after `pool`."""
    more_layers: tuple[str, ...] = ()
    """Keys of the same view's tokens from other layers of the encoder, with the same shape. Each
    layer is normalised by itself, and the features of a token are joined."""
    num_special: int = NUM_SPECIAL
    """Number of special tokens before the patches; 0 if the column has only patches."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches; None: a square."""
    align_weight: float = 0.5
    """Weight of the alignment loss, whose range is 0 to 2, relative to the head's; only for
    `align`."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range, or the tokens do not fit their use."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "num_tokens", "token_dim")
        if self.num_special < 0:
            yield Problem(
                "num_special", "at least 0", self.num_special, "0: all tokens are patches."
            )
        if not 0 < self.align_weight < math.inf:
            yield Problem(
                "align_weight",
                "a finite number above 0",
                self.align_weight,
                "For no alignment use another fusion.",
            )
        if len(set(self.keys)) < len(self.keys):
            yield Problem(
                "more_layers",
                "other keys than observation_key, each once",
                f"{self.keys} for {self.name!r}",
                "Remove the one that is read twice.",
            )
        yield from self._check_reduction()
        if self.fusion == "registers" and not 0 < self.num_special <= self.num_tokens:
            yield Problem(
                "num_special",
                f"1 to {self.num_tokens}, the num_tokens, for the fusion 'registers'",
                f"{self.num_special} for {self.name!r}",
                "Give the number of camera and register tokens, which come first.",
            )
        if self.fusion in ("features", "gated", "align") or self.reduction == "pool":
            yield from self._check_grid()

    @property
    def keys(self) -> tuple[str, ...]:
        """Returns the keys of all tokens read under `observation`, one per layer."""
        return (self.observation_key, *self.more_layers)

    @property
    def is_input(self) -> bool:
        """Returns whether the model reads them to act, and not only in training."""
        return self.fusion != "align"

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        """Returns the type of one step of each layer's tokens, by its key."""
        return dict.fromkeys(self.keys, LeafSpec("float16", (self.num_tokens, self.token_dim)))

    def make_tokenizer(self, dtype: str) -> Any:
        """Returns a `VGGTTokenizer`."""
        from train.octo.vggt_tokens import VGGTTokenizer  # noqa: PLC0415  (it imports this)

        return VGGTTokenizer(self, dtype)

    @property
    def tokens_per_step(self) -> int:
        """Returns the number of tokens per step in their own group; 0 if they have none."""
        if self.fusion not in ("tokens", "registers", "only"):
            return 0
        if self.reduction == "pool":
            return self.num_special + (self.reduced_to or 0)
        if self.reduction == "token_learner":
            return self.reduced_to or 0
        return self.num_special if self.fusion == "registers" else self.num_tokens

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Returns rows and columns of the patches."""
        # A square unless the grid is given; `_check_grid` reports what is none.
        side = math.isqrt(max(self.num_tokens - self.num_special, 0))
        return self.grid or (side, side)

    def _check_reduction(self) -> Iterator[Problem]:
        if self.reduction not in _REDUCTIONS[self.fusion]:
            yield Problem(
                "reduction",
                f"{' or '.join(_REDUCTIONS[self.fusion])} for the fusion {self.fusion!r}",
                f"{self.reduction} for {self.name!r}",
                "Change one of the two.",
            )
        # One without the other would be ignored silently.
        if (self.reduction == "none") != (self.reduced_to is None):
            yield Problem(
                "reduced_to",
                "None" if self.reduction == "none" else "a size",
                f"{self.reduced_to} with reduction {self.reduction!r} for {self.name!r}",
                "A reduction needs its size, and 'none' has none.",
            )
        if self.reduced_to is None:
            return
        yield from check_positive(self, "reduced_to")
        size = self.token_dim if self.reduction == "project" else self.num_tokens
        if self.reduction == "project":
            # `project` starts with the features of all layers.
            size *= len(self.keys)
        if self.reduced_to >= size:
            yield Problem(
                "reduced_to",
                f"less than the {size} that {self.reduction!r} starts with",
                f"{self.reduced_to} for {self.name!r}",
                "Lower it, or use reduction 'none'.",
            )
        if self.reduction == "pool" and math.isqrt(self.reduced_to) ** 2 != self.reduced_to:
            yield Problem(
                "reduced_to",
                "a square number, the patches of a smaller grid",
                f"{self.reduced_to} for {self.name!r}",
                f"Use {max(math.isqrt(max(self.reduced_to, 0)), 1) ** 2}.",
            )

    def _check_grid(self) -> Iterator[Problem]:
        # `patch_grid` rounds down, so the product shows whether the patches are a square.
        rows, columns = self.patch_grid
        patches = self.num_tokens - self.num_special
        if rows < 1 or columns < 1 or rows * columns != patches:
            shape = "not a square" if self.grid is None else f"not grid {rows} x {columns}"
            yield Problem(
                "num_tokens",
                "num_special and then the patches of a square, or of grid where it is set",
                f"{self.num_tokens} with num_special {self.num_special} for {self.name!r}: "
                f"{patches} patches, {shape}",
                "Set num_special or grid.",
            )


def replaced_cameras(geometry: Sequence[VGGTTokenizerConfig]) -> set[str]:
    """Returns the names of the cameras that geometry tokens replace."""
    return {vggt.camera for vggt in geometry if vggt.fusion == "only"}


def check_cameras(
    geometry: Sequence[VGGTTokenizerConfig], cameras: Collection[str]
) -> Iterator[Problem]:
    """Yields a message for each geometry input whose camera does not exist.

    Args:
      geometry: The geometry tokens of a model.
      cameras: Names of its cameras, including replaced ones.
    """
    replaced = replaced_cameras(geometry)
    for vggt in geometry:
        # They stand beside the cameras and belong to none.
        if vggt.fusion in ("tokens", "registers"):
            continue
        if vggt.camera not in cameras:
            yield Problem(
                "images",
                f"the camera {vggt.camera!r} of {vggt.name!r}, whose fusion {vggt.fusion!r} "
                "needs it",
                f"only {', '.join(cameras) or 'none'}",
                "Add the camera, or use the fusion 'tokens'.",
            )
        elif vggt.fusion != "only" and vggt.camera in replaced:
            yield Problem(
                "vggt",
                f"an image tokenizer for the camera {vggt.camera!r} of {vggt.name!r}, whose "
                f"fusion {vggt.fusion!r} needs it",
                "fusion 'only' of other tokens, which replaces it",
                "Use another fusion for one of them.",
            )
