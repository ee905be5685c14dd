import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.data.schema import Column, Feature, Schema, SourcePart, nest, rest_dtype, to_rest
from pipeline.errors import SchemaError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def tensor(
    dtype: str = "float32", shape: tuple[int, ...] = (2,), batch: str | None = ""
) -> Feature:
    """A tensor feature; its dtype in the batch is the one at rest unless given."""
    return Feature("x", "tensor", shape, dtype, dtype if batch == "" else batch, "steps/x")


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        ("uint8", "uint8"),
        ("int32", "int32"),
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("float32", "float32"),
        ("bool", "bool"),
        ("float64", "float32"),
        ("int8", "int32"),
        ("int16", "int32"),
        ("int64", "int32"),
        ("uint16", "int32"),
        ("uint32", "int32"),
        ("uint64", "int32"),
    ],
)
def test_source_dtype_has_one_dtype_at_rest(source: str, rest: str) -> None:
    assert rest_dtype(source, "here") == rest


@pytest.mark.parametrize("source", ["object", "str", "bytes", "complex64", "complex128", "float8"])
def test_other_source_dtypes_are_refused(source: str) -> None:
    with pytest.raises(
        SchemaError, match=f"here: expected a numeric dtype.*found {source}.*ignore"
    ):
        rest_dtype(source, "here")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[1.5, -3e38]]), "float32"),
        (np.array([[np.nan, np.inf]]), "float32"),
        (np.array([[float(np.finfo(np.float32).max), 0.0]]), "float32"),
        (np.array([[2**31 - 1, -(2**31)]], np.int64), "int32"),
        (np.array([[0, 2**31 - 1]], np.uint64), "int32"),
        (np.array([[-128, 127]], np.int8), "int32"),
        (np.array([[0.5, -65504]], np.float16), "float16"),
        (np.array([[0.5, 1e38]], BFLOAT16), "bfloat16"),
        (np.array([[np.nan, 1.0]], np.float32), "float32"),
        (np.array([[0, 255]], np.uint8), "uint8"),
        (np.array([[True, False]]), "bool"),
        (np.array([[1.0, 2.0]], ">f8"), "float32"),
    ],
)
def test_values_that_fit_arrive_at_rest_unchanged(values: np.ndarray, dtype: str) -> None:
    stored = to_rest(values, tensor(dtype), "here")
    assert stored.dtype == tensor(dtype).numpy_dtype
    np.testing.assert_array_equal(
        stored.astype(np.float64), values.astype(stored.dtype).astype(np.float64)
    )


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (np.array([[1e39, 0.0]]), "float32", "fit float32; found 1 float64 .* such as 1e\\+39"),
        (np.array([[2**31, -(2**31) - 1]]), "int32", "fit int32; found 2 int64 .*2147483648"),
        (np.array([[0, 2**63]], np.uint64), "int32", "fit int32; found 1 uint64"),
        (np.array([[0, 2**31]], np.uint32), "int32", "fit int32; found 1 uint32"),
        (np.array([[np.inf, 1]], np.float16), "float16", "fit float16; found 1 .* such as inf"),
        (np.array([[1, np.nan]], BFLOAT16), "bfloat16", "fit bfloat16; found 1 .* such as nan"),
        (np.array([[1, "a"]], object), "float32", "numeric dtype.*found object"),
        (np.array([["a", "b"]]), "float32", "numeric dtype.*found str"),
        (np.array([[1j, 2]]), "float32", "numeric dtype.*found complex128"),
        (np.array([[1.5, 2.5]]), "int32", "stored as int32; found float64 .* such as 1.5, 2.5"),
        (np.array([[1, 2]], np.int32), "float32", "stored as float32; found int32 .* 1, 2"),
        (np.zeros((1, 3), np.float32), "float32", r"float32\[2\] per step; found float32\[3\]"),
        (np.zeros(4, np.float32), "float32", r"float32\[2\] per step; found float32\[\]"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_their_place(
    values: np.ndarray, dtype: str, message: str
) -> None:
    with pytest.raises(SchemaError, match=f"set, episode 3, steps/x: .*{message}"):
        to_rest(values, tensor(dtype), "set, episode 3")


def test_refusal_shows_at_most_three_values() -> None:
    with pytest.raises(SchemaError, match=r"found 6 .* such as inf, inf, inf\. Fix or rescale"):
        to_rest(np.full((3, 2), np.inf, np.float16), tensor("float16"), "here")


@pytest.mark.parametrize(
    ("rest", "batch"),
    [
        ("uint8", "uint8"),
        ("int32", "int32"),
        ("float32", "float32"),
        ("bool", "bool"),
        ("float16", "float16"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
    ],
)
def test_allowed_pairs_of_dtypes_pass(rest: str, batch: str) -> None:
    tensor(rest, batch=batch).check("here")


@pytest.mark.parametrize(
    ("rest", "batch", "message"),
    [
        ("float64", "float32", "dtype at rest among .*found float64"),
        ("int64", "int32", "dtype at rest among .*found int64"),
        ("object", "float32", "dtype at rest among .*found object"),
        ("string", "int32", "dtype at rest among .*found string"),
        ("float32", "float64", "float32 in the batch, .*found float64"),
        ("int32", "int64", "int32 in the batch, .*found int64"),
        ("float32", "uint8", "float32 in the batch, .*found uint8"),
        ("uint8", "float32", "uint8 in the batch, .*found float32"),
        ("float32", "float16", "float32 in the batch, .*found float16"),
        ("float16", "bfloat16", "float16 or float32 in the batch, .*found bfloat16"),
        ("bfloat16", "bfloat16", "float32 in the batch, .*found bfloat16"),
        ("bfloat16", "float16", "float32 in the batch, .*found float16"),
        ("bool", "int32", "bool in the batch, .*found int32"),
        ("float32", None, "float32 in the batch, .*found None"),
    ],
)
def test_pairs_of_dtypes_that_no_rule_allows_are_refused(
    rest: str, batch: str | None, message: str
) -> None:
    with pytest.raises(SchemaError, match=f"here, feature x: expected .*{message}.*Convert"):
        tensor(rest, batch=batch).check("here")


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (8, 8, 3)), ("uint8", (8, 8)), ("uint8", (8, 8, 4))]
)
def test_only_rgb_bytes_are_an_image(dtype: str, shape: tuple[int, ...]) -> None:
    image = dataclasses.replace(tensor(dtype, shape), kind="image")
    with pytest.raises(SchemaError, match=r"an image of uint8\[h, w, 3\]"):
        image.check("here")


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "is_camera"),
    [
        ("image", "uint8", (8, 8, 3), True),
        ("tensor", "uint8", (8, 8, 3), True),
        ("tensor", "uint8", (8, 8, 4), False),
        ("tensor", "uint8", (3,), False),
        ("tensor", "float32", (8, 8, 3), False),
    ],
)
def test_rgb_bytes_are_a_camera_encoded_or_not(
    kind: Any, dtype: str, shape: tuple[int, ...], *, is_camera: bool
) -> None:
    assert dataclasses.replace(tensor(dtype, shape), kind=kind).is_camera is is_camera


def test_text_is_never_in_a_batch_and_has_no_numeric_dtype() -> None:
    Feature("source_id", "text", (), "utf8", None, "episode/path").check("here")


@pytest.mark.parametrize("field", ["dtype", "batch_dtype"])
@pytest.mark.parametrize("dtype", ["float64", "int64", "object", "string"])
def test_dataset_that_declares_another_dtype_does_not_open(
    copied: pathlib.Path, edit_schema: Callable, field: str, dtype: str
) -> None:
    def declare(manifest: dict) -> None:
        manifest["schema"]["columns"][0]["features"][1][field] = dtype

    edit_schema(copied, declare)
    message = f"copied/dataset.json, feature observation/proprio: expected .*found {dtype}.*Convert"
    with pytest.raises(SchemaError, match=message):
        open_dataset(str(copied))


def test_find_gives_the_column_and_names_what_there_is() -> None:
    column = Column("episodes", "episode", (tensor(),))
    schema = Schema((column,))
    assert schema.find("x", "here") == (column, tensor())
    with pytest.raises(
        SchemaError, match=r"here: expected a feature y; found only x. Name in data.observations"
    ):
        schema.find("y", "here")


@pytest.mark.parametrize(
    "change",
    [
        {"key": "y"},
        {"kind": "image"},
        {"shape": (3,)},
        {"dtype": "float16"},
        {"batch_dtype": "float16"},
        {"source": "steps/y"},
        {"source_dtype": "float64"},
        {"dims": ("x_m", "y_m")},
        {"parts": (SourcePart("steps/x", "float64", (2,)),)},
    ],
)
def test_hash_changes_with_every_field(change: dict) -> None:
    def schema(feature: Feature) -> Schema:
        return Schema((Column("episodes", "episode", (feature,)),))

    changed = schema(dataclasses.replace(tensor(), **change))
    assert changed.hash() != schema(tensor()).hash()


def test_hash_is_kept_with_checkpoints() -> None:
    # May change with a new field of Feature or Column only; older checkpoints then do not match.
    schema = Schema((Column("episodes", "episode", (tensor(),)),))
    assert schema.hash() == "44711e3be2db1dc1"


def test_nbytes_counts_one_step() -> None:
    assert [tensor("float16", (261, 2048)).nbytes, tensor("bool", ()).nbytes] == [1_069_056, 1]


def test_nest_splits_paths() -> None:
    assert nest({"a/b/c": 1, "a/d": 2, "e": 3}) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
