"""Rotations between representations, by numbers and against scipy's recorded ones."""

import pathlib
from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest

from pipeline.data.rotations import (
    Representation,
    convert_rotation,
    from_matrix,
    num_values,
    relative_position,
    relative_rotation,
    rotation_angle,
    to_matrix,
)

HALF = np.sqrt(0.5)
QUARTER_TURN_ABOUT_Z: Mapping[Representation, list[float]] = {
    "axis_angle": [0, 0, np.pi / 2],
    "quaternion_xyzw": [0, 0, HALF, HALF],
    "quaternion_wxyz": [HALF, 0, 0, HALF],
    "matrix": [0, -1, 0, 1, 0, 0, 0, 0, 1],
    "rot6d": [0, 1, 0, -1, 0, 0],
    "rot6d_rows": [0, -1, 0, 1, 0, 0],
    "euler_xyz": [0, 0, np.pi / 2],
    "euler_zyx": [np.pi / 2, 0, 0],
    "euler_intrinsic_zyx": [np.pi / 2, 0, 0],
    "euler_yxz": [0, 0, np.pi / 2],
}
RECORDED: Mapping[str, Representation] = {
    "quat_xyzw": "quaternion_xyzw",
    "quat_wxyz": "quaternion_wxyz",
    "axis_angle": "axis_angle",
    "euler_extrinsic_xyz": "euler_xyz",
    "euler_intrinsic_xyz": "euler_intrinsic_xyz",
    "euler_extrinsic_zyx": "euler_zyx",
    "euler_intrinsic_zyx": "euler_intrinsic_zyx",
    "rot6d_columns": "rot6d",
    "rot6d_rows": "rot6d_rows",
}
GIMBAL_LOCK = 3


def random_quaternions(num: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(num, 4))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("source", QUARTER_TURN_ABOUT_Z)
def test_a_quarter_turn_has_its_numbers(source: Representation) -> None:
    given = np.array(QUARTER_TURN_ABOUT_Z[source])
    for target, expected in QUARTER_TURN_ABOUT_Z.items():
        converted = convert_rotation(given, source, target)
        np.testing.assert_allclose(converted, expected, atol=1e-12, err_msg=target)


@pytest.mark.parametrize("representation", get_args(Representation))
def test_every_representation_inverts(representation: Representation) -> None:
    given = random_quaternions(40).reshape(2, 20, 4)
    values = convert_rotation(given, "quaternion_xyzw", representation)
    assert values.shape == (2, 20, num_values(representation))
    back = convert_rotation(values, representation, "quaternion_xyzw")
    assert rotation_angle(given, back, "quaternion_xyzw").max() < 1e-7
    matrices = to_matrix(values, representation)
    assert matrices.shape == (2, 20, 3, 3)
    np.testing.assert_allclose(to_matrix(from_matrix(matrices, representation), representation),
                               matrices, atol=1e-12)  # fmt: skip


def test_fixed_axes_are_moving_ones_in_reverse_order() -> None:
    angles = np.array([0.1, -0.4, 2.0])
    x, y, z = (to_matrix(vector, "axis_angle") for vector in (np.eye(3) * angles[:, None]))
    np.testing.assert_allclose(to_matrix(angles, "euler_xyz"), z @ y @ x, atol=1e-12)
    np.testing.assert_allclose(to_matrix(angles, "euler_intrinsic_xyz"), x @ y @ z, atol=1e-12)
    reverse = convert_rotation(angles, "euler_xyz", "euler_intrinsic_zyx")
    np.testing.assert_allclose(reverse, angles[::-1], atol=1e-12)


def test_numbers_are_rounded_once() -> None:
    given = random_quaternions(50).astype(np.float32)
    single = convert_rotation(given, "quaternion_xyzw", "euler_xyz")
    assert single.dtype == np.float32
    exact = convert_rotation(given.astype(np.float64), "quaternion_xyzw", "euler_xyz")
    assert exact.dtype == np.float64
    np.testing.assert_array_equal(single, exact.astype(np.float32))
    assert convert_rotation(np.zeros(3, np.int32), "axis_angle", "euler_xyz").dtype == np.float64
    assert convert_rotation(np.zeros((0, 3)), "euler_xyz", "rot6d_rows").shape == (0, 6)


def test_the_sign_of_a_quaternion_is_kept() -> None:
    given = np.array([0.0, 0.0, -HALF, -HALF])
    swapped = convert_rotation(given, "quaternion_xyzw", "quaternion_wxyz")
    np.testing.assert_allclose(swapped, [-HALF, 0, 0, -HALF])


@pytest.mark.parametrize(
    ("values", "representation", "message"),
    [
        (np.zeros(4), "quaternion_wxyz", "norm 0"),
        (np.zeros((2, 3)), "quaternion_xyzw", "has 4 values"),
        (np.array([np.nan, 0, 0]), "euler_xyz", "must be finite"),
        (np.array([1.0, 0, 0, 2, 0, 0]), "rot6d_rows", "parallel"),
    ],
)
def test_what_is_no_rotation_is_refused(values, representation, message) -> None:
    with pytest.raises(ValueError, match=message):
        convert_rotation(values, representation, "matrix")
    with pytest.raises(ValueError, match="must be"):
        from_matrix(np.zeros((3, 2)), "matrix")


def test_relative_poses_by_numbers() -> None:
    now = np.array([0.0, 0.0, np.pi / 2])
    future = np.array([np.pi / 2, 0.0, np.pi / 2])  # about fixed axes: first x, then z
    tool = relative_rotation(now, future, "euler_xyz")
    np.testing.assert_allclose(tool, [np.pi / 2, 0, 0], atol=1e-12)
    base = relative_rotation(now, future, "euler_xyz", frame="base")
    np.testing.assert_allclose(to_matrix(base, "euler_xyz") @ to_matrix(now, "euler_xyz"),
                               to_matrix(future, "euler_xyz"), atol=1e-12)  # fmt: skip
    # One metre along the base's y is one along the x of a tool turned to the left.
    moved = relative_position(np.ones(3), np.array([1.0, 2, 1]), now, "euler_xyz")
    np.testing.assert_allclose(moved, [1, 0, 0], atol=1e-12)


@pytest.fixture(scope="module")
def recorded(shared: pathlib.Path) -> Mapping[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "rotations" / "rotations.npz"))


@pytest.mark.parametrize("source", RECORDED)
def test_scipys_recorded_rotations(recorded: Mapping[str, np.ndarray], source: str) -> None:
    for key, target in RECORDED.items():
        converted = convert_rotation(recorded[source], RECORDED[source], target)
        angles = rotation_angle(converted, recorded[key], target)
        assert angles.max() < 1e-6, key
    exact = to_matrix(recorded[source], RECORDED[source])
    np.testing.assert_allclose(exact, recorded["matrix"], atol=1e-6)


def test_recorded_rotations_that_are_not_normalised(recorded: Mapping[str, np.ndarray]) -> None:
    noisy = to_matrix(recorded["rot6d_columns_noisy"], "rot6d")
    np.testing.assert_allclose(noisy, recorded["matrix_from_noisy"], atol=1e-9)
    free = to_matrix(recorded["quat_xyzw_unnormalised"], "quaternion_xyzw")
    np.testing.assert_allclose(free, recorded["matrix"], atol=1e-9)


def test_recorded_angles_of_octos_mappings(recorded: Mapping[str, np.ndarray]) -> None:
    given = recorded["octo_quat_to_euler_input_f32"]
    angles = convert_rotation(given, "quaternion_xyzw", "euler_xyz")
    octos = recorded["octo_quat_to_euler_f32"]
    assert rotation_angle(angles, octos, "euler_xyz").max() < 1e-3
    unique = recorded["kind"] != GIMBAL_LOCK
    gaps = np.abs(np.angle(np.exp(1j * (angles - octos)[unique])))
    assert np.median(gaps) < 1e-6


def test_recorded_chunks_of_poses(recorded: Mapping[str, np.ndarray]) -> None:
    """Trajectories through the angle pi and through gimbal lock are among them."""
    steps = np.arange(12)[:, None]
    now, future = (np.repeat(steps, 8, 1), steps + 1 + np.arange(8))
    position, turn = recorded["traj_position"], recorded["traj_quat_xyzw"]
    moved = relative_position(
        position[:, now], position[:, future], turn[:, now], "quaternion_xyzw"
    )
    np.testing.assert_allclose(moved, recorded["chunk_se3_position"], atol=1e-9)
    for name, frame in (("chunk_se3_axis_angle", "tool"), ("chunk_base_frame_axis_angle", "base")):
        turned = relative_rotation(turn[:, now], turn[:, future], "quaternion_xyzw", frame)
        axis_angle = convert_rotation(turned, "quaternion_xyzw", "axis_angle")
        assert rotation_angle(axis_angle, recorded[name], "axis_angle").max() < 1e-7, name
