"""What is known of computed tokens: it is stored with them, and compared before they are used."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xxhash
from etils import epath

from pipeline.errors import DataError, UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.quantize import GroupedInt8
from pipeline.schema import Feature
from pipeline.vggt.config import NUM_SPECIAL, PATCH_SIZE
from pipeline.vggt.spec import EncoderSpec, Kept

Store = Literal["f16", "bf16", "int8"]
"""`f16`, `bf16`: numbers of half precision; `int8`: as `pipeline.quantize` codes them."""

_KEPT: dict[str, Kept] = {
    "all": "all",
    "patches": "patches",
    "registers": "special",
    "pool": "patches",
    "project": "patches",
}
_SIZED = ("pool", "project")
_HINTS = ("weights", "licence", "precision")
"""Fields of an encoder that do not change what its tokens mean."""
_MEASURED = ("storage_error", "reduction_error", "projection")
"""Fields of an origin that do not: what was measured, and where the projection lies."""
_LARGEST_FLOAT16 = 65504.0


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which tokens of a view are stored, and how many numbers of each.

    `all`: the camera's, the registers' and the patches'; `patches`: those alone, row by row;
    `registers`: the camera's and the registers' alone; `pool:64`: patches averaged to a grid of 8
    by 8; `project:512`: patches in 512 numbers, by a projection that is stored beside them.
    """

    what: str
    """The word before the colon."""
    size: int = 0
    """The number after it; 0 where there is none."""

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """The inverse of `str`.

        Raises:
          ValueError: A text that says nothing of the kind, or a grid that is no square.
        """
        match = re.fullmatch(r"([a-z]+)(?::([1-9]\d*))?", text)
        if match is None or match[1] not in _KEPT or (match[1] in _SIZED) != (match[2] is not None):
            raise ValueError(
                f"keep must be all, patches, registers, pool:N or project:N, not {text}"
            )
        keep = cls(match[1], int(match[2] or 0))
        if keep.what == "pool" and keep.side**2 != keep.size:
            raise ValueError(f"keep must be pool: of a square number, such as pool:64, not {text}")
        return keep

    def __str__(self) -> str:
        """Such as `all` or `pool:64`."""
        return f"{self.what}:{self.size}" if self.size else self.what

    @property
    def side(self) -> int:
        """Cells along one side of a pooled grid."""
        return math.isqrt(self.size)

    @property
    def kept(self) -> Kept:
        """What the encoder keeps for it."""
        return _KEPT[self.what]

    @property
    def num_special(self) -> int:
        """Tokens of camera and registers, which come first."""
        return NUM_SPECIAL if self.what in ("all", "registers") else 0

    def shape(self, encoder: EncoderSpec) -> tuple[int, int]:
        """(tokens, numbers of each) that are stored of a view.

        Raises:
          ValueError: More cells than patches, or more numbers than a token has.
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
    """How the tokens of one feature were made; a policy that learnt from them needs such tokens."""

    encoder: EncoderSpec
    """That made them: of one layer, and where each camera is a sequence of its own of one camera.
    Of a joint sequence it names all cameras, the first of which is the reference."""
    camera: str
    """Observation whose view it is."""
    keep: str
    """Which tokens, as `Keep` has it."""
    store: Store
    """How they are stored."""
    storage_error: float
    """Root mean square of what storing changed, over that of the tokens; on a sample of steps."""
    reduction_error: float = 0.0
    """The same of what was lost before, by pooling or projecting, over all patches' tokens."""
    projection: str = ""
    """File of the projection, in the dataset directory; empty where there is none."""
    projection_digest: str = ""
    """XXH3-128 over the bytes of its numbers."""

    def __post_init__(self) -> None:
        """Checks that it is of one layer and camera, and that its parts fit each other."""
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
        """The pair of blocks that they come out of."""
        return self.encoder.layers[0]

    def feature(self, key: str) -> Feature:
        """The feature that holds them."""
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
        return _LARGEST_FLOAT16 if has_float16 else 3e38

    @classmethod
    def from_json(cls, text: str, where: str) -> "TokenOrigin":
        """What `Loader.describe_datasets` tells of a feature.

        Raises:
          DataError: Where it is none.
        """
        return from_json_text(cls, text, where=where, remedy="Compute the tokens again.")


def read_projection(directory: epath.Path, origin: TokenOrigin) -> np.ndarray:
    """The projection of a feature's tokens: float32 (k + 1, d), axes and below them the mean.

    Args:
      directory: Of the dataset.
      origin: Of the feature.

    Raises:
      DataError: Where it is missing or not the one that the tokens were made with.
    """
    path = directory / origin.projection
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _no_projection(path, "a readable projection", str(error)) from error
    found = array_digest(array)
    if origin.projection_digest not in ("", found):
        raise _no_projection(path, f"the digest {origin.projection_digest}", found)
    return array


def array_digest(array: np.ndarray) -> str:
    """XXH3-128 over the bytes of an array's numbers, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).tobytes())


def _no_projection(path: epath.Path, expected: str, found: str) -> DataError:
    remedy = "Name the dataset whose tokens they are, copy it again, or compute the column again."
    return DataError(where=str(path), expected=expected, found=found, remedy=remedy)


def check_same_encoder(stored: TokenOrigin, other: TokenOrigin, where: str) -> None:
    """Checks that two features hold the same tokens, but for where the weights were and storage.

    Args:
      stored: Of the tokens that are there, or that a policy learnt from.
      other: Of those that are to be used with them.
      where: What is wrong where they differ, such as a path and a feature.

    Raises:
      UserError: They differ; it names every field that does, with both values.
    """
    then, now = _meaning(stored), _meaning(other)
    differing = [name for name in then if then[name] != now[name]]
    if differing:
        raise UserError(
            where=where,
            expected=", ".join(f"{name} {_shown(then[name])}" for name in differing),
            found=", ".join(f"{name} {_shown(now[name])}" for name in differing),
            remedy="Tokens of one encoder are noise to another: compute them with "
            "`python -m converters.vggt` and these settings, or use what they were made for.",
        )


def check_same_encoders(kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that the tokens of datasets are those that a run has learnt from.

    Args:
      kept: Of its checkpoint, as `Loader.describe_datasets` returned it; one that was written
        before encoders were known says nothing of them.
      now: As `Loader.describe_datasets` returns it.

    Raises:
      UserError: They are not; see `check_same_encoder`.
    """
    then: dict[str, TokenOrigin] = {}
    for path, dataset in kept.items():
        for key, values in dataset.get("encoders", {}).items():
            then.setdefault(key, TokenOrigin.from_json(json.dumps(values), f"{path}, {key}"))
    for path, dataset in now.items():
        for key, values in dataset["encoders"].items():
            if key in then:
                origin = TokenOrigin.from_json(json.dumps(values), f"{path}, {key}")
                check_same_encoder(then[key], origin, f"{path}, {key}")


def token_identity(origin: TokenOrigin) -> dict[str, Any]:
    """What decides the tokens of a feature, and how they are stored, as JSON values."""
    values = to_json_values(origin)
    kept = {name: value for name, value in values.items() if name not in _MEASURED}
    encoder = {name: value for name, value in values["encoder"].items() if name not in _HINTS}
    return kept | {"encoder": encoder}


def _meaning(origin: TokenOrigin) -> dict[str, Any]:
    """What decides the tokens, by field."""
    fields = {
        field.name: getattr(origin.encoder, field.name)
        for field in dataclasses.fields(EncoderSpec)
        if field.name not in _HINTS
    }
    of_origin = ("camera", "keep", "projection_digest")
    return fields | {name: getattr(origin, name) for name in of_origin}


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value) or "none"
