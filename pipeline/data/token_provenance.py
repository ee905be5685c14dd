"""The origin of computed tokens: stored with them, and compared before they are used."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.data.int8_codec import GroupedInt8
from pipeline.data.schema import Feature
from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.vggt.encoder_spec import NUM_SPECIAL, PATCH_SIZE, EncoderSpec, Kept

Store = Literal["f16", "bf16", "int8"]
"""`f16`, `bf16`: half precision; `int8`: quantized by `pipeline.data.int8_codec`."""

_KEPT: dict[str, Kept] = {
    "all": "all",
    "patches": "patches",
    "registers": "special",
    "pool": "patches",
    "project": "patches",
}
_SIZED = ("pool", "project")
_HINTS = ("weights", "licence", "precision")
"""Fields of an encoder that do not change the meaning of its tokens."""
_MEASURED = ("storage_error", "reduction_error", "projection")
"""Fields of an origin that do not change the meaning of its tokens: measurements, and the path of
the projection."""
# The largest finite float16.
_LARGEST_FLOAT16 = 65504.0


@dataclasses.dataclass(frozen=True)
class Keep:
    """The tokens of a view that are stored, and their width.

    `all`: camera, register and patch tokens; `patches`: patch tokens only, row by row;
    `registers`: camera and register tokens only; `pool:64`: patch tokens averaged to a grid of 8
    by 8; `project:512`: patch tokens projected to 512 values. Projected tokens are of early
    releases, whose datasets can be read; none are made.
    """

    what: str
    """The word before the colon."""
    size: int = 0
    """The number after the colon; 0 if there is none."""

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Inverts `str`.

        Raises:
          ValueError: The text is none of these, or its grid is no square.
        """
        match = re.fullmatch(r"([a-z]+)(?::([1-9]\d*))?", text)
        # A size exactly where the word takes one.
        if match is None or match[1] not in _KEPT or (match[1] in _SIZED) != (match[2] is not None):
            raise ValueError(f"keep must be all, patches, registers or pool:N, not {text}")
        keep = cls(match[1], int(match[2] or 0))
        if keep.what == "pool" and keep.side**2 != keep.size:
            raise ValueError(f"keep must be pool: of a square number, such as pool:64, not {text}")
        return keep

    def __str__(self) -> str:
        """Formats the choice, such as `all` or `pool:64`."""
        return f"{self.what}:{self.size}" if self.size else self.what

    @property
    def side(self) -> int:
        """Number of cells along one side of the pooled grid."""
        return math.isqrt(self.size)

    @property
    def kept(self) -> Kept:
        """The tokens that the encoder has to keep for this choice."""
        return _KEPT[self.what]

    @property
    def num_special(self) -> int:
        """Number of camera and register tokens, which come first."""
        return NUM_SPECIAL if self.what in ("all", "registers") else 0

    def shape(self, encoder: EncoderSpec) -> tuple[int, int]:
        """Returns the shape (tokens, width) that is stored for a view.

        Raises:
          ValueError: The grid has more cells than patches, or the projection is wider than a token.
        """
        num_tokens, width = encoder.token_shape
        if self.what == "pool":
            grid = tuple(side // PATCH_SIZE for side in encoder.image_size)
            if self.side > min(grid):
                raise ValueError(
                    f"{self} is a grid of {self.side} by {self.side}, but the patches are "
                    f"{grid[0]} by {grid[1]}"
                )
            return self.size, width
        if self.what == "project":
            if self.size > width:
                raise ValueError(f"{self} is more than the {width} numbers of a token")
            return num_tokens, self.size
        return num_tokens, width


@dataclasses.dataclass(frozen=True)
class TokenOrigin:
    """How one feature's tokens were computed; a policy trained on them needs the same tokens."""

    encoder: EncoderSpec
    """The encoder, restricted to one layer. If each camera is a sequence of its own, it lists only
    that camera; for a joint sequence it lists all cameras, and the first is the reference."""
    camera: str
    """Name of the observation that holds the camera's images."""
    keep: str
    """The tokens that are stored, as the text of a `Keep`."""
    store: Store
    """How they are stored."""
    storage_error: float
    """Root mean square error of storage relative to that of the tokens, on a sample of steps."""
    reduction_error: float = 0.0
    """Relative root mean square error of pooling, over all patch tokens."""
    projection: str = ""
    """File of the projection of an early release; empty if there is none."""
    projection_digest: str = ""
    """XXH3-128 over the bytes of the projection's values."""

    def __post_init__(self) -> None:
        """Checks that there is one layer and a known camera, and that the fields agree."""
        keep = Keep.parse(self.keep)
        keep.shape(self.encoder)
        if len(self.encoder.layers) != 1:
            raise ValueError(f"layers must be one, not {self.encoder.layers}")
        if self.camera not in self.encoder.cameras:
            raise ValueError(f"camera must be of {self.encoder.cameras}, not {self.camera}")
        if self.encoder.kept != keep.kept:
            raise ValueError(f"the encoder keeps {self.encoder.kept}, but keep is {self.keep}")
        if bool(self.projection) != (keep.what == "project"):
            raise ValueError(f"projection is {self.projection!r}, but keep is {self.keep}")

    @property
    def layer(self) -> int:
        """Index of the pair of blocks that outputs the tokens."""
        return self.encoder.layers[0]

    def feature(self, key: str) -> Feature:
        """Returns the feature that holds the tokens."""
        keep = Keep.parse(self.keep)
        shape = keep.shape(self.encoder)
        match self.store:
            case "f16":
                return Feature(key, "tensor", shape, "float16", "float16", source="")
            case "bf16":
                return Feature(key, "tensor", shape, "bfloat16", "float32", source="")
            case "int8":
                code = GroupedInt8.of_width(shape[1], keep.num_special)
                return Feature(key, "quantized", shape, str(code), "float32", source="")

    @property
    def largest(self) -> float:
        """The largest magnitude that can be stored."""
        keep = Keep.parse(self.keep)
        has_float16 = self.store == "f16" or (self.store == "int8" and keep.num_special > 0)
        # About the largest float32, which bfloat16 shares; int8 has float32 scales.
        return _LARGEST_FLOAT16 if has_float16 else 3e38

    @classmethod
    def from_json(cls, text: str, where: str) -> "TokenOrigin":
        """Parses the origin of a feature that `Loader.describe_datasets` wrote.

        Raises:
          DataError: The text is no valid origin.
        """
        return from_json_text(cls, text, where=where, remedy="Compute the tokens again.")


def check_same_encoder(stored: TokenOrigin, other: TokenOrigin, where: str) -> None:
    """Checks that two features hold the same tokens, whatever their storage or weights' path.

    Args:
      stored: Origin of the stored tokens, or of those that a policy was trained on.
      other: Origin of the tokens that are to be used with them.
      where: Place for the error, such as a path and a feature.

    Raises:
      UserError: The tokens differ; it lists every differing field with both values.
    """
    then, now = _meaning(stored), _meaning(other)
    differing = [name for name in then if then[name] != now[name]]
    if differing:
        raise UserError(
            where=where,
            expected=", ".join(f"{name} {_shown(then[name])}" for name in differing),
            found=", ".join(f"{name} {_shown(now[name])}" for name in differing),
            remedy="Tokens of one encoder are noise to another: compute them with "
            "`octograin tokens` and these settings, or use what they were made for.",
        )


def check_same_encoders(kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that datasets hold the same tokens as those that a run was trained on.

    Args:
      kept: What `Loader.describe_datasets` returned, from the run's checkpoint. Checkpoints of
        early releases have no encoders, and pass.
      now: What `Loader.describe_datasets` returns for the datasets.

    Raises:
      UserError: The tokens differ; see `check_same_encoder`.
    """
    then: dict[str, TokenOrigin] = {}
    for path, dataset in kept.items():
        for key, values in dataset.get("encoders", {}).items():
            # The first dataset of the run stands for all: the loader has compared them.
            then.setdefault(key, TokenOrigin.from_json(json.dumps(values), f"{path}, {key}"))
    for path, dataset in now.items():
        for key, values in dataset["encoders"].items():
            # A new observation was not trained on, and has nothing to differ from.
            if key in then:
                origin = TokenOrigin.from_json(json.dumps(values), f"{path}, {key}")
                check_same_encoder(then[key], origin, f"{path}, {key}")


def token_identity(origin: TokenOrigin) -> dict[str, Any]:
    """Returns what determines the tokens of a feature and their storage, as JSON values."""
    values = to_json_values(origin)
    # Measured errors differ from run to run, with the same tokens.
    kept = {name: value for name, value in values.items() if name not in _MEASURED}
    encoder = {name: value for name, value in values["encoder"].items() if name not in _HINTS}
    return kept | {"encoder": encoder}


def _meaning(origin: TokenOrigin) -> dict[str, Any]:
    """Returns what determines the tokens, by field."""
    fields = {
        field.name: getattr(origin.encoder, field.name)
        for field in dataclasses.fields(EncoderSpec)
        if field.name not in _HINTS
    }
    # By checksum, not by path: the projection may be copied.
    of_origin = ("camera", "keep", "projection_digest")
    return fields | {name: getattr(origin, name) for name in of_origin}


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value) or "none"
