"""Each operation by numbers, the types that it takes, and what it says of those it does not."""

import pathlib
import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from converters.operations.array_operations import (
    Cast,
    Clip,
    Columns,
    Divide,
    Invert,
    Negate,
    Offset,
    Reshape,
    Scale,
)
from converters.operations.gripper_operations import (
    BinarizeGripper,
    GripperHysteresis,
    RelativeGripper,
)
from converters.operations.operations import computed, output_type, steps_ahead
from converters.operations.rotation_operations import (
    AddToState,
    ConvertRotation,
    ScaleByMotion,
    TurnInPlane,
)
from converters.operations.text_operations import CodePoints, Substitute, TextOfCode, Unzip
from converters.operations.time_operations import (
    Accumulate,
    Difference,
    Next,
    RotationDifference,
    SumAhead,
)
from converters.operations.value_type import Operation, ValueType

HALF = float(np.sqrt(0.5))
QUARTER = float(np.pi / 2)


def tensor(*shape: int, dtype: str = "float32") -> ValueType:
    return ValueType("tensor", dtype, shape)


TEXT = ValueType("text", "utf8", ())

ARRAYS = [
    (Columns("1"), [[1, 2, 3]], [[2]]),
    (Columns("-1:"), [[1, 2, 3]], [[3]]),
    (Columns(":-1"), [[1, 2, 3]], [[1, 2]]),
    (Columns("-3:-2"), [[1, 2, 3, 4]], [[2]]),
    (Columns("2, 0:2"), [[1, 2, 3]], [[3, 1, 2]]),
    (Columns("-1"), [[[1, 2], [3, 4]]], [[[2], [4]]]),
    (Scale(2.0), [3.0], [6.0]),
    (Scale((1.0, -1.0)), [[2, 3]], [[2, -3]]),
    (Divide(255), [[255, 51]], [[1, 0.2]]),
    (Offset(-0.5), [1.0, 2.0], [0.5, 1.5]),
    (Negate(), [1.0, -2.0], [-1.0, 2.0]),
    (Invert(), [0.0, 1.0, 0.25], [1.0, 0.0, 0.75]),
    (Clip(0, 1), [-1.0, 0.5, 2.0], [0.0, 0.5, 1.0]),
    (Reshape((1,)), [1.0, 2.0], [[1.0], [2.0]]),
    (Reshape((4,)), [[[1, 2], [3, 4]]], [[1, 2, 3, 4]]),
    (Reshape((2, -1)), [[1, 2, 3, 4]], [[[1, 2], [3, 4]]]),
    (Reshape((1, 2)), [[[[1], [2]]]], [[[1, 2]]]),
    (RelativeGripper(), [0, 1, 0, -1, 0.1, 0.11], [1, 0, 0, 1, 1, 0]),
    (RelativeGripper(), [0, -1, 0], [0, 1, 1]),
    (RelativeGripper(), [0.1, -0.1, 0], [1, 1, 1]),
    (RelativeGripper(), [[0, 0], [1, -1]], [[1, 0], [0, 1]]),
    (BinarizeGripper(), [0.5, 1, 0.5, 0.5, 0.04], [1, 1, 0, 0, 0]),
    (BinarizeGripper(), [1, 0.95, 0.05], [1, 0.05, 0.05]),
    (GripperHysteresis(0.6, 0.4), [0.5, 0.7, 0.5, 0.3, 0.5], [1, 1, 1, 0, 0]),
    (GripperHysteresis(0.6, 0.4), [0.5, 0.1, 0.6, 0.61], [0, 0, 0, 1]),
    (GripperHysteresis(0.6, 0.4), [0.5, 0.5], [1, 1]),
    (Next(), [1, 2, 4], [2, 4, 4]),
    (Next(2), [1, 2, 4], [4, 4, 4]),
    (Difference(), [[1, 1], [2, 4], [4, 3]], [[1, 3], [2, -1], [0, 0]]),
    (Difference(2), [1, 2, 4, 8], [3, 6, 4, 0]),
    (Difference(angles="1"), [[0, 3], [0, -3]], [[0, 2 * np.pi - 6], [0, 0]]),
    (Accumulate(), [1, 2, -1], [1, 3, 2]),
    (SumAhead(2), [1, 2, 4], [3, 6, 4]),
    (
        ConvertRotation("quaternion_xyzw", "euler_xyz", "1:5"),
        [[7, 0, 0, HALF, HALF, 9]],
        [[7, 0, 0, QUARTER, 9]],
    ),
    (ConvertRotation("euler_xyz", "rot6d"), [[0, 0, QUARTER]], [[0, 1, 0, -1, 0, 0]]),
    (
        RotationDifference("euler_xyz", "1:4"),
        [[5, 0, 0, 1], [6, 0, 0, 3]],
        [[5, 0, 0, 2], [6, 0, 0, 0]],
    ),
    (AddToState("position"), [[1, 2], [3, 4]], [[2, 3], [4, 7]]),
    (AddToState("position", "1"), [[2], [3]], [[3], [6]]),
    # Beyond pi, as published LIBERO states are. Turned by another quarter about z: a half about x,
    # then a quarter about z.
    (
        AddToState("pose", "1:", rotation="axis_angle"),
        [[0, 0, QUARTER], [0, 0, 0]],
        [[2 * QUARTER * HALF, 2 * QUARTER * HALF, 0], [-QUARTER, 0, 0]],
    ),
    (
        AddToState("pose", "1:", rotation="axis_angle", frame="tool"),
        [[0, 0, -QUARTER], [0, 0, 0]],
        [[2 * QUARTER * HALF, 2 * QUARTER * HALF, 0], [-QUARTER, 0, 0]],
    ),
    (TurnInPlane("yaw"), [[1, 0], [0, 2]], [[0, 1], [-2, 0]]),
    (TurnInPlane("yaw", inverse=True), [[1, 0], [0, 2]], [[0, -1], [2, 0]]),
    (ScaleByMotion("action", "position"), [[1, 2], [3, 4]], [[2.5, 5], [7.5, 10]]),
]
OTHERS = {
    "yaw": np.full((2, 1), QUARTER),
    "action": np.array([[3.0, 4.0], [0, 0]]),
    "position": np.array([[1.0, 1.0], [1, 3]]),
    "pose": np.array([[9.0, 2 * QUARTER, 0, 0], [9, 3 * QUARTER, 0, 0]]),
}


@pytest.mark.parametrize(("operation", "given", "expected"), ARRAYS, ids=str)
def test_arrays_become(operation: Operation, given: Sequence, expected: Sequence) -> None:
    values = np.array(given, np.float32)
    copy = values.copy()
    made = operation.apply(values, OTHERS)
    np.testing.assert_allclose(made, np.array(expected, np.float32), atol=1e-6)
    np.testing.assert_array_equal(values, copy)
    promised = operation.output(tensor(*values.shape[1:]))
    assert promised == ValueType("tensor", made.dtype.name, made.shape[1:])
    double = operation.apply(values.astype(np.float64), OTHERS)
    assert double.dtype.name == operation.output(tensor(*values.shape[1:], dtype="float64")).dtype


@pytest.mark.parametrize(
    ("operation", "given", "expected"),
    [
        (Cast("float32", "counts"), np.array([True, False]), np.array([1, 0], np.float32)),
        (Cast("float32", "depth"), np.array([7], np.int32), np.array([7], np.float32)),
        (Cast("bool", "a flag"), np.array([1.0, 0.0]), np.array([True, False])),
        (Cast("int32", "codes"), np.array([3.0]), np.array([3], np.int32)),
    ],
)
def test_casts_keep_the_value(operation: Cast, given: np.ndarray, expected: np.ndarray) -> None:
    made = operation.apply(given, {})
    np.testing.assert_array_equal(made, expected)
    assert made.dtype == expected.dtype


def objects(*values: bytes) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def test_byte_strings_are_unzipped() -> None:
    packed = objects(*(zlib.compress(np.full(3, t, "<f4").tobytes()) for t in range(2)))
    operation = Unzip((3,))
    np.testing.assert_array_equal(
        operation.apply(packed, {}), np.array([[0] * 3, [1] * 3], np.float32)
    )
    assert operation.output(TEXT) == tensor(3)
    with pytest.raises(ValueError, match=r"it has 3 values, not \[4\]"):
        Unzip((4,)).apply(packed, {})
    with pytest.raises(ValueError, match="bytes that zlib cannot read"):
        operation.apply(objects(packed[0], b"xy"), {})


def test_texts_are_made() -> None:
    codes = np.array([[*map(ord, "é a"), 0, 65]], np.int32)
    assert CodePoints().apply(codes, {}).tolist() == ["é a".encode()]
    assert CodePoints().output(tensor(5, dtype="int32")) == TEXT
    assert TextOfCode(("a", "b")).apply(np.array([1, 0]), {}).tolist() == [b"b", b"a"]
    assert TextOfCode(("a", "b")).output(tensor(1, dtype="int64")) == TEXT
    named = Substitute(r".*/(\w+)_demo\.hdf5", r"\1").apply(objects(b"a/pick_up_demo.hdf5"), {})
    assert Substitute("_", " ").apply(named, {}).tolist() == [b"pick up"]
    with pytest.raises(ValueError, match="the code 2 is none of 0 to 1"):
        TextOfCode(("a", "b")).apply(np.array([1, 2]), {})
    with pytest.raises(ValueError, match="numbers that are no code points"):
        CodePoints().apply(np.array([[0xD800]], np.int32), {})


@pytest.mark.parametrize(
    ("operation", "given", "message"),
    [
        (Columns("0:8"), tensor(7), "columns 0:8 are not among 7"),
        (Columns("0"), tensor(), "columns of a tensor, not of float32"),
        (Scale((1.0, 2.0)), tensor(3), "2 numbers, one per column, but gets"),
        (Invert(), tensor(1, dtype="bool"), "float32 or float64, not bool.*cast"),
        (RelativeGripper(), TEXT, "not a text"),
        (Reshape((2, -1)), tensor(7), r"shape \[2, -1\] does not hold the 7 values"),
        (Difference(angles="3:6"), tensor(4), "columns 3:6 are not among 4"),
        (ConvertRotation("quaternion_xyzw", "euler_xyz", "3:6"), tensor(7), "has 4 values, not 3"),
        (ConvertRotation("euler_xyz", "matrix", "0:2, 3"), tensor(7), "not side by side"),
        (RotationDifference("rot6d"), tensor(3), "rot6d has 6 values, not 3"),
        (TurnInPlane("yaw"), tensor(3), "vectors of 2"),
        (AddToState("pose", rotation="axis_angle"), tensor(7), r"3 values, not float32\[7\]"),
        (Unzip((7,)), tensor(7), "byte strings"),
        (CodePoints(), tensor(5), "vectors of integers"),
        (TextOfCode(("a",)), tensor(2, dtype="int32"), "one integer"),
        (Substitute("a"), tensor(), "a text"),
        (Cast("float32", "why"), TEXT, "a tensor"),
    ],
    ids=str,
)
def test_types_that_do_not_fit_are_refused(operation, given, message) -> None:
    with pytest.raises(ValueError, match=message):
        operation.output(given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Columns("0:6:2"), "must be such as"),
        (lambda: Columns(""), "must be such as"),
        (lambda: Divide(0.0), "must not be 0"),
        (lambda: Clip(1, 0), "low 1 must be below"),
        (lambda: Cast("float32", " "), "says why"),
        (lambda: Next(0), "at least 1"),
        (lambda: GripperHysteresis(0.4, 0.6), "must not be above"),
        (lambda: RelativeGripper(0), "above 0"),
        (lambda: Substitute("("), "pattern"),
        (lambda: Substitute("a", r"\1"), "invalid group reference"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("operation", "values", "message"),
    [
        (Cast("int32", "codes"), np.array([0.5]), "int32 does not hold 0.5"),
        (Cast("float32", "size"), np.array([1e300]), r"float32 does not hold 1e\+300"),
        (ScaleByMotion("action", "still"), np.ones((2, 2)), "does not change from step 0 to 1"),
        (TurnInPlane("position"), np.ones((2, 2)), "2 values per step, not one angle"),
        (AddToState("pose", "0:3"), np.ones((2, 4)), r"\[3\] values per step in these.*not \[4\]"),
        (ConvertRotation("quaternion_xyzw", "euler_xyz"), np.zeros((1, 4)), "norm 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(operation, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        operation.apply(values, OTHERS | {"still": np.zeros((2, 2))})


def test_a_chain_names_the_operation_that_fails() -> None:
    chain = (Columns("0"), Clip(0, 1), Columns("1"))
    with pytest.raises(ValueError, match=r"operation columns \(3\. of 3\): columns 1 are not"):
        output_type(chain, tensor(7))
    with pytest.raises(ValueError, match=r"operation cast, step 1: int32 does not hold 0\.5"):
        computed((Cast("int32", "codes"),), np.array([1.0, 0.5]), {})
    assert output_type((*chain[:2], Invert()), tensor(7)) == tensor(1)
    made = computed((*chain[:2], Invert()), np.array([[0.25, 9]], np.float32), {})
    np.testing.assert_array_equal(made, np.array([[0.75]], np.float32))
    assert steps_ahead((Difference(3), SumAhead(2), Invert())) == 4


def test_octos_recorded_grippers(shared: pathlib.Path) -> None:
    recorded = np.load(shared / "golden" / "oxe" / "gripper_functions.npz")
    for name, operation in (("binarize", BinarizeGripper()), ("rel2abs", RelativeGripper())):
        for row, length in enumerate(recorded["lengths"]):
            made = operation.apply(recorded[f"{name}_in"][row, :length], {})
            np.testing.assert_array_equal(made, recorded[f"{name}_out"][row, :length])
