"""The schema of a dataset: its features, their types at rest and in the batch, and the dtype law.

| at the source                                | at rest             | in the batch          |
| -------------------------------------------- | ------------------- | --------------------- |
| uint8 image, encoded                         | the encoded bytes   | uint8 (h w 3)         |
| depth, uint16 or float                       | 16-bit PNG in mm    | float32 (h w 1) in m  |
| float32, int32, uint8, bool                  | unchanged           | unchanged             |
| float64                                      | float32, if it fits | float32               |
| int8, int16, int64, uint16, uint32, uint64   | int32, if it fits   | int32                 |
| float16, bfloat16                            | unchanged, finite   | as declared           |
| computed tokens, in groups of int8           | `int8x128`          | float32               |
| string, bytes                                | task table, episode | never                 |
| object, complex, ragged                      | rejected            | never                 |
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np

from pipeline.added_fields import LATER, without_absent
from pipeline.data.int8_codec import GroupedInt8
from pipeline.errors import SchemaError, did_you_mean

BATCH_DTYPES = ("uint8", "int32", "float16", "float32", "bool")
"""The dtypes that a batch leaf may have."""

_DTYPES = {name: np.dtype(name) for name in ("uint8", "int32", "float16", "float32", "bool")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}
_REST_DTYPES = {name: name for name in _DTYPES} | {
    "float64": "float32",
    "int8": "int32",
    "int16": "int32",
    "int64": "int32",
    "uint16": "int32",
    "uint32": "int32",
    "uint64": "int32",
}
_HALF_DTYPES = ("float16", "bfloat16")
# Sign aside, all ones in the exponent mean NaN or infinity.
_EXPONENT_BITS = {_DTYPES["float16"]: 0x7C00, _DTYPES["bfloat16"]: 0x7F80}
"""Exponent bits; all of them are set in NaN and infinities."""
_NUM_SAMPLES = 3
_IMAGE_AXES = 3

EPISODES = "episodes"
"""The column of trajectories, one record per episode."""
SOURCE_ID = "source_id"
"""Feature of the trajectories: the source's name of the episode."""
ACTION = "action"
"""Feature of the trajectories that a policy learns to predict."""

Kind = Literal["tensor", "image", "depth", "text", "quantized"]

Blob = bytes | memoryview
"""An encoded image, a text in UTF-8, or quantized tokens."""


@dataclasses.dataclass(frozen=True)
class SourcePart:
    """A source key from which a feature is made, as the source declares it."""

    source: str
    """The key, such as `steps/action/world_vector`."""
    dtype: str
    """Dtype of its values; of the decoded pixels for an image."""
    shape: tuple[int, ...]
    """Shape of one value: () for a scalar, (h, w, 1) for a grey image."""

    @property
    def size(self) -> int:
        """Number of elements of one value."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Feature:
    """One named array, image or text of a record."""

    key: str
    """Path in the batch, such as `observation/proprio`."""
    kind: Kind
    """How it is stored: typed bytes, an encoded image, a depth image (`pipeline.data.depth`), UTF-8
    text (episode metadata), or tokens quantized by `pipeline.data.int8_codec`."""
    shape: tuple[int, ...]
    """Shape of one step, without the time axis; (h, w, 3) for an image, (h, w, 1) for depth, () for
    a text."""
    dtype: str
    """Dtype at rest; for an image, of its decoded pixels; `utf8` for a text; for quantized tokens
    such as `int8x128+5`, of which the first 5 are float16."""
    batch_dtype: str | None
    """Dtype in the batch; None for a text, which never enters one."""
    source: str
    """Its key in the source, such as `steps/observation/state`; empty for a computed feature,
    which is not in the source."""
    source_dtype: str = ""
    """Dtype in the source, to which exports convert back. Empty: the same as `dtype`."""
    dims: tuple[str, ...] = ()
    """Names of the last axis with their units, such as `x_m`; empty if not given."""
    parts: tuple[SourcePart, ...] = dataclasses.field(default=(), metadata=LATER)
    """Source keys whose values are concatenated as float32, in order; or a single key that has
    another shape or dtype in the source. Empty if the values of the key `source` are stored
    unchanged. With several parts, `source` joins their keys with a plus sign."""
    source_unit: Literal["", "mm", "m"] = dataclasses.field(default="", metadata=LATER)
    """Unit of a depth image in the source; empty for all other features."""

    @property
    def nbytes(self) -> int:
        """Size at rest of one step of a tensor or of quantized tokens, in bytes."""
        if self.kind == "quantized":
            return self.code.num_bytes(self.shape)
        return int(np.prod(self.shape, dtype=np.int64)) * self.numpy_dtype.itemsize

    @property
    def is_camera(self) -> bool:
        """Whether each step is an RGB image, either encoded or as pixels, uint8 (h, w, 3)."""
        # (h, w, 3): pixels may also be stored as a tensor.
        is_rgb = self.dtype == "uint8" and self.shape[2:] == (3,)
        return self.kind == "image" or (self.kind == "tensor" and is_rgb)

    @property
    def origins(self) -> tuple["SourcePart", ...]:
        """The source keys from which it is made, in order; none for a computed feature."""
        if self.parts or not self.source:
            return self.parts
        return (SourcePart(self.source, self.source_dtype or self.dtype, self.shape),)

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype at rest as a numpy dtype."""
        return np.dtype(np.uint16) if self.kind == "depth" else _DTYPES[self.dtype]

    @property
    def code(self) -> GroupedInt8:
        """The layout of quantized tokens."""
        code = GroupedInt8.parse(self.dtype)
        if code is None:
            raise ValueError(f"{self.key} is {self.dtype}, not quantized")
        return code

    def check(self, where: str) -> None:
        """Raises a `SchemaError` if the declared types break the dtype law."""
        if self.kind == "text":
            return
        if self.kind == "depth":
            self._check_depth(where)
            return
        if self.kind == "quantized":
            code = GroupedInt8.parse(self.dtype)
            if code is None or not code.fits(self.shape):
                raise SchemaError(
                    where=f"{where}, feature {self.key}",
                    expected="tokens of a code such as int8x128+5, whose groups divide their width",
                    found=f"{self.dtype}{list(self.shape)}",
                    remedy="Compute the column again; the encoder writes only such tokens.",
                )
        elif self.dtype not in _DTYPES:
            raise SchemaError(
                where=f"{where}, feature {self.key}",
                expected=f"a dtype at rest among {', '.join(_DTYPES)}",
                found=self.dtype,
                remedy="Convert the dataset again; the converter writes only these.",
            )
        if self.kind == "image" and (self.dtype, self.shape[2:]) != ("uint8", (3,)):
            raise SchemaError(
                where=f"{where}, feature {self.key}",
                expected="an image of uint8[h, w, 3]",
                found=f"{self.dtype}{list(self.shape)}",
                remedy="Convert the dataset again; the converter writes only such images.",
            )
        allowed = batch_dtypes(self.dtype)
        if self.batch_dtype not in allowed:
            raise SchemaError(
                where=f"{where}, feature {self.key}",
                expected=f"{' or '.join(allowed)} in the batch, for {self.dtype} at rest",
                found=str(self.batch_dtype),
                remedy="Convert the dataset again; the converter declares only these.",
            )

    def _check_depth(self, where: str) -> None:
        is_plane = len(self.shape) == _IMAGE_AXES and self.shape[-1] == 1
        if not is_plane or (self.dtype, self.batch_dtype) != ("uint16", "float32"):
            raise SchemaError(
                where=f"{where}, feature {self.key}",
                expected="a depth image of uint16[h, w, 1], float32 in the batch",
                found=f"{self.dtype}{list(self.shape)}, {self.batch_dtype} in the batch",
                remedy="Convert the dataset again; the converter writes only such images.",
            )


@dataclasses.dataclass(frozen=True)
class Column:
    """Features stored together in one series of shards: one record per step, or per episode."""

    name: str
    """Folder inside the dataset directory."""
    per: Literal["step", "episode"]
    """What one record stands for. An episode's tensors have a leading time axis."""
    features: tuple[Feature, ...]
    """The features, in the order of their bytes in a record."""

    def is_camera(self, feature: Feature) -> bool:
        """Whether a feature of this column is a camera, whose steps are separate records."""
        return self.per == "step" and feature.is_camera

    def is_lowdim(self, feature: Feature) -> bool:
        """Whether a feature of this column is a float32 vector or scalar of a trajectory."""
        is_float = feature.kind == "tensor" and feature.dtype == "float32"
        return self.per == "episode" and is_float and len(feature.shape) <= 1

    def in_batch(self, feature: Feature) -> Feature:
        """Returns the feature as it is in a batch: a float32 scalar becomes a vector of size 1."""
        # Models and statistics treat a scalar as a vector of size 1.
        is_scalar = self.is_lowdim(feature) and not feature.shape
        return dataclasses.replace(feature, shape=(1,)) if is_scalar else feature


@dataclasses.dataclass(frozen=True)
class Schema:
    """All columns of a dataset."""

    columns: tuple[Column, ...]

    def features(self) -> Iterator[tuple[Column, Feature]]:
        """Yields every feature with the column that holds it."""
        for column in self.columns:
            for feature in column.features:
                yield column, feature

    def find(self, key: str, where: str) -> tuple[Column, Feature]:
        """Finds a feature by its batch key; returns its column and the feature.

        Raises:
          SchemaError: No column has the feature.
        """
        for column, feature in self.features():
            if feature.key == key:
                return column, feature
        held = [feature.key for _, feature in self.features()]
        raise SchemaError(
            where=where,
            expected=f"a feature {key}",
            found=f"only {', '.join(held)}",
            remedy=did_you_mean(key, held) + _how_to_have(key),
        )

    def hash(self) -> str:
        """Checksum of all names, types and their order, 16 hex digits."""
        # Later fields are left out if they have their default: older datasets keep their hash.
        values = without_absent(self, dataclasses.asdict(self))
        # Separators and order are fixed, because the hash is over this text.
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check(self, where: str) -> None:
        """Raises a `SchemaError` if any declared type breaks the dtype law."""
        for _, feature in self.features():
            feature.check(where)


def _how_to_have(key: str) -> str:
    """Says what to do about a feature that a dataset lacks."""
    if key == ACTION:
        return (
            f'Convert the source again, with key = "{ACTION}" for one of its keys in the mapping '
            "(`octograin convert SRC --describe` writes one)."
        )
    return (
        "Name in data.observations what the dataset has, or convert a source that has this one; "
        "tokens are computed by `octograin tokens`."
    )


def rest_dtype(source_dtype: str, where: str) -> str:
    """Returns the dtype at rest for a source dtype.

    Raises:
      SchemaError: The dtype law forbids it (object, string, complex and unknown dtypes).
    """
    if source_dtype not in _REST_DTYPES:
        raise SchemaError(
            where=where,
            expected=f"a numeric dtype among {', '.join(_REST_DTYPES)}",
            found=source_dtype,
            remedy="Add the key to the mapping's `ignore`, or write the source with numbers.",
        )
    return _REST_DTYPES[source_dtype]


def batch_dtypes(rest: str) -> tuple[str, ...]:
    """Returns the dtypes that values may have in a batch: the one at rest, and float32 for halves.

    Quantized tokens become float32 or float16.
    """
    if GroupedInt8.parse(rest) is not None:
        return ("float16", "float32")
    kept = tuple(dtype for dtype in BATCH_DTYPES if dtype == rest)
    # bfloat16 is no dtype of a batch, so it is read as float32.
    return (*kept, "float32") if rest in _HALF_DTYPES else kept


def to_rest(values: np.ndarray, feature: Feature, where: str) -> np.ndarray:
    """Casts a trajectory to its dtype at rest, if all values fit.

    Args:
      values: (t, *feature.shape) of any numeric dtype.
      feature: The feature to which the values belong.
      where: Dataset, shard and record, for the error.

    Returns:
      The same values as `feature.dtype`; the only change is rounding from float64 to float32.

    Raises:
      SchemaError: The shape differs, the dtype law forbids the dtype, an integer or float is out
        of range, or a half-precision value is not finite.
    """
    where = f"{where}, {feature.source}"
    if values.shape[1:] != feature.shape:
        raise SchemaError(
            where=where,
            expected=f"{feature.dtype}{list(feature.shape)} per step",
            found=f"{values.dtype}{list(values.shape[1:])}",
            remedy="Every step of a feature has one shape; pad it at the source or ignore the key.",
        )
    # By the dtype that the record really has, not the declared one.
    if rest_dtype(values.dtype.name, where) != feature.dtype:
        raise SchemaError(
            where=where,
            expected=f"values that are stored as {feature.dtype}",
            found=f"{values.dtype.name} values such as {_samples(values)}",
            remedy="Write the source with the dtype that its features.json declares.",
        )
    misfits = _misfits(values, feature.numpy_dtype)
    if misfits.any():
        raise SchemaError(
            where=where,
            expected=f"values that fit {feature.dtype}",
            found=f"{int(misfits.sum())} {values.dtype.name} values that do not, "
            f"such as {_samples(values[misfits])}",
            remedy="Fix or rescale them at the source, or ignore the key in the mapping.",
        )
    return values.astype(feature.numpy_dtype, copy=False)


def _misfits(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Boolean mask of the values that `dtype` cannot hold."""
    if dtype in _EXPONENT_BITS:
        mask = _EXPONENT_BITS[dtype]
        return (values.view(np.uint16) & mask) == mask  # 3 times as fast as isfinite
    # int32 itself cannot misfit.
    if dtype == np.int32 and values.dtype != np.int32:
        limits = np.iinfo(np.int32)
        return (values < limits.min) | (values > limits.max)
    if dtype == np.float32 and values.dtype == np.float64:
        # Infinity stays infinity; a finite value must not become one.
        return np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max)
    return np.zeros(values.shape, bool)


def _samples(values: np.ndarray) -> str:
    return ", ".join(repr(value) for value in values.ravel()[:_NUM_SAMPLES].tolist())


def nest(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Nests a flat dictionary: `a/b` becomes `["a"]["b"]`."""
    nested: dict[str, Any] = {}
    for key, value in batch.items():
        # "a/b/c": a and b are dictionaries, c is the leaf.
        *parents, leaf = key.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nested
