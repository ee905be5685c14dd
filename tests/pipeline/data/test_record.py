import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.data.record import RecordLayout
from pipeline.data.schema import Column, Feature
from pipeline.errors import DataError

DTYPES = ["uint8", "int32", "float16", "bfloat16", "float32", "bool"]


def feature(key: str, kind: str = "tensor", shape: tuple = (3,), dtype: str = "float32") -> Feature:
    return Feature(key, kind, shape, dtype, "float32", f"steps/{key}")


STEP = RecordLayout(Column("steps", "step", (feature("x"), feature("camera", "image"))))
VALUES = {"x": np.array([1.0, 2.0, 3.0], np.float32), "camera": b"\xff\xd8 pixels"}


# Plain data: beartype, which checks the classes as they are made, draws random numbers, and
# hypothesis forbids that inside a strategy.
FEATURES = st.lists(
    st.tuples(
        st.sampled_from(["tensor", "tensor", "image", "text"]),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.sampled_from(DTYPES),
    ),
    max_size=6,
)


def any_value(data: st.DataObject, feature: Feature, leading: tuple) -> np.ndarray | bytes:
    """Any bytes as the feature's type: NaN, infinities and denormals included."""
    if feature.kind != "tensor":
        return data.draw(st.binary(max_size=40))
    shape = (*leading, *feature.shape)
    size = int(np.prod(shape)) * feature.numpy_dtype.itemsize
    drawn = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    drawn = drawn & 1 if feature.dtype == "bool" else drawn
    return drawn.view(feature.numpy_dtype).reshape(shape)


def any_record(
    data: st.DataObject, parts: list, per: str, num_steps: int
) -> tuple[RecordLayout, int, dict[str, Any]]:
    """(layout, num_steps, values) of any features."""
    column = Column("column", per, tuple(feature(f"f{i}", *part) for i, part in enumerate(parts)))
    num_steps = num_steps if per == "episode" else 1
    leading = (num_steps,) if per == "episode" else ()
    return (
        RecordLayout(column),
        num_steps,
        {f.key: any_value(data, f, leading) for f in column.features},
    )


ANY_RECORD = {
    "parts": FEATURES,
    "per": st.sampled_from(["step", "episode"]),
    "num_steps": st.integers(0, 5),
    "place": st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    "data": st.data(),
}


@settings(max_examples=80)
@given(**ANY_RECORD)
def test_decoding_undoes_encoding_exactly(
    parts: list, per: str, num_steps: int, place: tuple, data: st.DataObject
) -> None:
    layout, num_steps, values = any_record(data, parts, per, num_steps)
    decoded = layout.decode(layout.encode(place, num_steps, values), place, "here")
    assert decoded.keys() == values.keys()
    for key, value in values.items():
        if isinstance(value, bytes):
            assert decoded[key] == value
            continue
        assert (decoded[key].dtype, decoded[key].shape) == (value.dtype, value.shape)
        assert decoded[key].tobytes() == value.tobytes()


@settings(max_examples=40)
@given(**ANY_RECORD)
def test_no_shorter_and_no_longer_record_decodes(
    parts: list, per: str, num_steps: int, place: tuple, data: st.DataObject
) -> None:
    layout, num_steps, values = any_record(data, parts, per, num_steps)
    encoded = layout.encode(place, num_steps, values)
    kept = data.draw(st.integers(0, len(encoded) - 1))
    for other in (encoded[:kept], encoded + b"\0"):
        with pytest.raises(DataError, match=r"here: expected .* bytes\. .*convert"):
            layout.decode(other, place, "here")


def test_decoded_tensors_are_read_only_views_of_the_record() -> None:
    encoded = STEP.encode((0, 0), 1, VALUES)
    decoded = STEP.decode(encoded, (0, 0), "here")
    assert np.shares_memory(decoded["x"], np.frombuffer(encoded, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        decoded["x"][0] = 0


def test_tensors_start_at_multiples_of_sixteen_bytes() -> None:
    features = (feature("a", shape=(1,), dtype="uint8"), feature("b"), feature("text", "text"))
    layout = RecordLayout(Column("steps", "step", features))
    values = {"a": np.array([7], np.uint8), "b": VALUES["x"], "text": b"abc"}
    encoded = layout.encode((0, 0), 1, values)
    assert encoded[32] == 7  # 24 bytes of header, 4 of one blob length, 4 of padding
    assert encoded[48:60] == VALUES["x"].tobytes()
    assert encoded[64:] == b"abc"


def test_bytes_of_a_record_are_pinned() -> None:
    # May change with the format version only: older datasets would no longer be read.
    assert STEP.encode((1, 5), 1, VALUES).hex() == (
        "4f475231"
        "44456bc5"
        "01000000"
        "05000000"
        "01000000"
        "01000000"
        "09000000"
        "00000000"
        "0000803f"
        "00000040"
        "00004040"
        "00000000"
        "ffd820706978656c73"
    )


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda r: b"", "a record header; found 0 bytes"),
        (lambda r: r[:20], "a record header; found 20 bytes"),
        (lambda r: r[:40], "44 bytes or more; found 40 bytes"),
        (lambda r: r[:-1], f"{48 + 9} bytes; found {48 + 8} bytes"),
        (lambda r: r + b"\0", f"{48 + 9} bytes; found {48 + 10} bytes"),
        (lambda r: b"NOPE" + r[4:], "starts with b'OGR1'; found b'NOPE'"),
        (lambda r: r[:12] + struct.pack("<I", 6) + r[16:], "record 6 of shard 1, out of its place"),
        (lambda r: r[:20] + struct.pack("<I", 9) + r[24:], "found layout .* of other features"),
    ],
)
def test_corrupt_record_is_refused_with_its_place(corrupt: Any, message: str) -> None:
    record = corrupt(STEP.encode((1, 5), 1, VALUES))
    with pytest.raises(DataError, match=f"shard 1, record 5: expected .*{message}.*convert"):
        STEP.decode(record, (1, 5), "shard 1, record 5")


@pytest.mark.parametrize(
    "other",
    [
        Column("steps", "step", (feature("y"), feature("camera", "image"))),
        Column("steps", "step", (feature("x", dtype="int32"), feature("camera", "image"))),
        Column("steps", "step", (feature("x", shape=(1, 3)), feature("camera", "image"))),
        Column("steps", "step", (feature("x"), feature("camera", "text"))),
        Column("steps", "step", (feature("camera", "image"), feature("x"))),
        Column("steps", "episode", (feature("x"), feature("camera", "image"))),
    ],
)
def test_record_of_another_layout_is_refused(other: Column) -> None:
    with pytest.raises(DataError, match=r"expected layout .*; found layout .* of other features"):
        RecordLayout(other).decode(STEP.encode((0, 0), 1, VALUES), (0, 0), "here")


@pytest.mark.parametrize("other", [(0, 3), (1, 2)])
def test_record_of_another_place_is_refused(other: tuple[int, int]) -> None:
    message = "expected record {1} of shard {0}; found record 2 of shard 0, out of".format(*other)
    with pytest.raises(DataError, match=message):
        STEP.decode(STEP.encode((0, 2), 1, VALUES), other, "here")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3, np.float64), r"x must be float32\[3\], not float64\[3\]"),
        (np.zeros(2, np.float32), r"x must be float32\[3\], not float32\[2\]"),
    ],
)
def test_nothing_is_cast_while_encoding(x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STEP.encode((0, 0), 1, VALUES | {"x": x})
