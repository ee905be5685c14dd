"""Columns of a data file as typed values, and whether they are what `meta/info.json` declares."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from converters.lerobot.lerobot_features import BOOKKEEPING, LeRobotFeature
from pipeline.data.schema import Blob
from pipeline.errors import DataError, SchemaError

_REMEDY = "meta/info.json and the data files are of different versions: fetch both again."


def check_schema(schema: pa.Schema, features: Mapping[str, LeRobotFeature], where: str) -> None:
    """Checks that a data file has the declared columns, in types that their declarations allow.

    Args:
      schema: Of the file.
      features: Declared features by source key.
      where: The file, for errors.

    Raises:
      SchemaError: Where it has not; all differences at once.
    """
    columns = [feature for feature in features.values() if feature.is_column]
    needed = dict.fromkeys([*BOOKKEEPING, *(feature.name for feature in columns)])
    expected = [f"a column {name}" for name in needed if name not in schema.names]
    found = [f"no {name}" for name in needed if name not in schema.names]
    # Numbers, whether they are declared as such or not at all.
    numbers = {feature.name for feature in columns if feature.key.kind == "tensor"}
    for name in [name for name in BOOKKEEPING if name in schema.names and name not in numbers]:
        stored = schema.field(name).type
        if not (pa.types.is_integer(stored) or pa.types.is_floating(stored)):
            expected.append(f"numbers in {name}")
            found.append(f"{name} as {stored}")
    for feature in columns:
        if feature.name in schema.names and feature.key.kind != "other":
            stored = schema.field(feature.name).type
            if not _fits(feature, stored):
                expected.append(f"{feature.name} as {_declared(feature)}")
                found.append(f"{feature.name} as {stored}")
    if expected:
        raise SchemaError(
            where=where, expected=", ".join(expected), found=", ".join(found), remedy=_REMEDY
        )


def _declared(feature: LeRobotFeature) -> str:
    if feature.storage in ("image", "string"):
        return feature.storage
    return f"{feature.key.dtype}{list(feature.key.shape)}"


def _fits(feature: LeRobotFeature, stored: pa.DataType) -> bool:
    """Whether a column can hold the values of a feature."""
    if feature.storage == "image":
        return pa.types.is_struct(stored) and stored.get_field_index("bytes") >= 0
    if feature.storage == "string":
        return pa.types.is_string(stored) or pa.types.is_large_string(stored)
    lengths = []
    while _is_list(stored):
        lengths.append(getattr(stored, "list_size", None))
        stored = stored.value_type
    if not (pa.types.is_primitive(stored) or pa.types.is_boolean(stored)):
        return False
    # Lists of any length are measured when they are read.
    if None not in lengths and math.prod(lengths) != math.prod(feature.key.shape):
        return False
    # Not by `to_pandas_dtype`, which imports pandas.
    dtype = pa.array([], stored).to_numpy(zero_copy_only=False).dtype
    return np.can_cast(dtype, feature.key.dtype, casting="same_kind")


def _is_list(stored: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(stored) or types.is_large_list(stored) or types.is_fixed_size_list(stored)


def tensor_values(column: pa.ChunkedArray, feature: LeRobotFeature, where: str) -> np.ndarray:
    """The values (t, *shape) of a column, in the declared dtype as LeRobot's reader gives them.

    A float64 column that is declared as float32 is rounded.

    Raises:
      SchemaError: A value is missing or has another shape.
    """
    array = _whole(column)
    num_rows = len(array)
    while _is_list(array.type):
        lengths = pc.call_function("list_value_length", [array]).to_pylist()
        if len(set(lengths)) > 1:
            raise _mismatch(where, feature, f"lists of {lengths[0]} and of other lengths")
        array = array.flatten()
    if array.null_count:
        raise _mismatch(where, feature, "nulls")
    values = array.to_numpy(zero_copy_only=False)
    shape = (num_rows, *feature.key.shape)
    if values.size != math.prod(shape):
        raise _mismatch(where, feature, f"{values.size // max(num_rows, 1)} values")
    return values.astype(feature.key.dtype, copy=False).reshape(shape)


def text_values(column: pa.ChunkedArray, feature: LeRobotFeature, where: str) -> list[Blob]:
    """The texts of a column in UTF-8.

    Raises:
      SchemaError: A text is missing.
    """
    if column.null_count:
        raise _mismatch(where, feature, "nulls")
    # As bytes, because a corrupt file may hold what is no UTF-8.
    return column.cast(pa.large_binary()).to_pylist()


def image_values(column: pa.ChunkedArray, feature: LeRobotFeature, where: str) -> list[Blob]:
    """The encoded images of a column, untouched.

    Raises:
      DataError: An image lies elsewhere, or nowhere.
    """
    return list(_image_bytes(column, feature, where))


def _image_bytes(column: pa.ChunkedArray, feature: LeRobotFeature, where: str) -> Iterator[bytes]:
    for step, image in enumerate(column.to_pylist()):
        encoded = image and image["bytes"]
        if not encoded:
            elsewhere = (image or {}).get("path")
            raise DataError(
                where=f"{where}, {feature.name}, step {step}",
                expected="the bytes of an image",
                found=f"only its path {elsewhere}" if elsewhere else "none",
                remedy="Write the set with lerobot, which embeds images, or fetch it again.",
            )
        yield encoded


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    # Of no chunks at all it stays chunked.
    if isinstance(combined, pa.ChunkedArray):
        return pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([])
    return combined


def _mismatch(where: str, feature: LeRobotFeature, found: str) -> SchemaError:
    return SchemaError(
        where=f"{where}, {feature.name}",
        expected=f"{_declared(feature)} in each step, as meta/info.json declares",
        found=found,
        remedy=_REMEDY,
    )
