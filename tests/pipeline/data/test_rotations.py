"""Rotations between representations, by numbers and against scipy's recorded ones."""

import pathlib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pytest

from pipeline.data.rotations import (
    Representation,
    absolute_position,
    absolute_rotation,
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
AT_PI, GIMBAL_LOCK = 2, 3
"""Kinds of recorded rotations whose numbers are not unique."""
PART = pathlib.Path(__file__).parents[2] / "data" / "golden" / "rotations" / "rotations.npz"


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


@pytest.mark.parametrize("frame", ["tool", "base"])
def test_a_relative_pose_leads_back(frame: Literal["tool", "base"]) -> None:
    rng = np.random.default_rng(1)
    now, future = random_quaternions(60).reshape(2, 30, 4)
    relative = relative_rotation(now, future, "quaternion_xyzw", frame)
    reached = absolute_rotation(now, relative, "quaternion_xyzw", frame)
    np.testing.assert_allclose(reached, future, atol=1e-12)
    here, there = rng.normal(size=(2, 30, 3))
    seen = relative_position(here, there, now, "quaternion_xyzw")
    back = absolute_position(here, seen, now, "quaternion_xyzw")
    np.testing.assert_allclose(back, there, atol=1e-12)
    single = absolute_position(here, seen.astype(np.float32), now, "quaternion_xyzw")
    assert single.dtype == np.float32


# --- recorded by scipy: a part that is always compared, and all of it where it is there


@pytest.fixture(scope="module", params=["part", "whole"])
def recorded(request: pytest.FixtureRequest) -> Mapping[str, np.ndarray]:
    if request.param == "part":
        return dict(np.load(PART))
    shared = request.getfixturevalue("shared")
    return dict(np.load(shared / "golden" / "rotations" / "rotations.npz"))


def angle_between(first: np.ndarray, second: np.ndarray, representation: Representation) -> float:
    """The largest angle between rotations, in radians, computed in float64."""
    exact = (values.astype(np.float64) for values in (first, second))
    return rotation_angle(*exact, representation).max()


def test_the_part_has_rotations_of_every_kind() -> None:
    part = np.load(PART)
    assert np.bincount(part["kind"]).tolist() == [40, 1, 40, 60, 30, 30]
    assert part["chunk_se3_rot6d_columns"].shape == (5, 12, 8, 6)


@pytest.mark.parametrize("source", RECORDED)
def test_scipys_recorded_rotations(recorded: Mapping[str, np.ndarray], source: str) -> None:
    for key, target in RECORDED.items():
        converted = convert_rotation(recorded[source], RECORDED[source], target)
        assert angle_between(converted, recorded[key], target) < 1e-6, key
        single = convert_rotation(recorded[source].astype(np.float32), RECORDED[source], target)
        assert single.dtype == np.float32
        assert angle_between(single, recorded[key], target) < 1e-5, key
    exact = to_matrix(recorded[source], RECORDED[source])
    np.testing.assert_allclose(exact, recorded["matrix"], atol=1e-6)


@pytest.mark.parametrize("target", RECORDED)
def test_recorded_numbers_where_they_are_unique(
    recorded: Mapping[str, np.ndarray], target: str
) -> None:
    unique = ~np.isin(recorded["kind"], (AT_PI, GIMBAL_LOCK))
    found = convert_rotation(recorded["matrix"].reshape(-1, 9)[unique], "matrix", RECORDED[target])
    gaps = found - recorded[target][unique]
    if target.startswith("euler"):
        gaps = np.angle(np.exp(1j * gaps))
    if target.startswith("quat"):
        gaps = np.minimum(np.abs(gaps), np.abs(found + recorded[target][unique]))
    assert np.abs(gaps).max() < 1e-6


@pytest.mark.parametrize("representation", get_args(Representation))
def test_recorded_rotations_go_there_and_back(
    recorded: Mapping[str, np.ndarray], representation: Representation
) -> None:
    given = recorded["quat_xyzw"]
    for dtype, largest in ((np.float64, 1e-6), (np.float32, 1e-5)):
        there = convert_rotation(given.astype(dtype), "quaternion_xyzw", representation)
        back = convert_rotation(there, representation, "quaternion_xyzw")
        assert back.dtype == dtype
        assert angle_between(given, back, "quaternion_xyzw") < largest


def test_recorded_rotations_that_are_not_normalised(recorded: Mapping[str, np.ndarray]) -> None:
    noisy = to_matrix(recorded["rot6d_columns_noisy"], "rot6d")
    np.testing.assert_allclose(noisy, recorded["matrix_from_noisy"], atol=1e-9)
    free = to_matrix(recorded["quat_xyzw_unnormalised"], "quaternion_xyzw")
    np.testing.assert_allclose(free, recorded["matrix"], atol=1e-9)


def test_recorded_angles_of_octos_mappings(recorded: Mapping[str, np.ndarray]) -> None:
    """tensorflow-graphics computes in float32: 2.9e-4 is its largest error, at gimbal lock."""
    given = recorded["octo_quat_to_euler_input_f32"]
    angles = convert_rotation(given, "quaternion_xyzw", "euler_xyz")
    octos = recorded["octo_quat_to_euler_f32"]
    assert angle_between(angles, octos, "euler_xyz") < 1e-3
    unique = ~np.isin(recorded["kind"], (AT_PI, GIMBAL_LOCK))
    gaps = np.abs(np.angle(np.exp(1j * (angles - octos)[unique])))
    assert gaps.max() < 1e-3
    assert np.median(gaps) < 1e-6
    matrices = to_matrix(recorded["euler_extrinsic_xyz"].astype(np.float32), "euler_xyz")
    np.testing.assert_allclose(matrices, recorded["tfg_matrix_from_euler_f32"], atol=1e-5)


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
        assert angle_between(axis_angle, recorded[name], "axis_angle") < 1e-7, name
        reached = absolute_rotation(turn[:, now], turned, "quaternion_xyzw", frame)
        assert angle_between(reached, turn[:, future], "quaternion_xyzw") < 1e-7, name


@pytest.mark.parametrize("frame", ["tool", "base"])
def test_recorded_steps_from_pose_to_pose(
    recorded: Mapping[str, np.ndarray], frame: Literal["tool", "base"]
) -> None:
    turn = recorded["traj_axis_angle"]
    steps = relative_rotation(turn[:, :-1], turn[:, 1:], "axis_angle", frame)
    assert angle_between(steps, recorded[f"step_delta_axis_angle_{frame}"], "axis_angle") < 1e-6


# --- many poses


def hard_quaternions(num: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform rotations, tiny ones, some near the angle pi, and some near gimbal lock; (num 4)."""
    uniform = rng.normal(size=(num // 4, 4))
    axes = rng.normal(size=(num // 2, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    small = 10.0 ** rng.uniform(-9, -2, num)
    angles = np.concatenate([small[: num // 4], np.pi - small[num // 4 : num // 2]])
    locked = rng.uniform(-np.pi, np.pi, (num // 4, 3))
    locked[:, 1] = rng.choice([-1, 1], num // 4) * (np.pi / 2 - small[-(num // 4) :])
    return np.concatenate(
        [
            convert_rotation(uniform, "quaternion_xyzw", "quaternion_xyzw"),
            convert_rotation(axes * angles[:, None], "axis_angle", "quaternion_xyzw"),
            convert_rotation(locked, "euler_xyz", "quaternion_xyzw"),
        ]
    )


@pytest.mark.parametrize("num", [8_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_poses_survive_every_representation_and_a_change_of_frame(num: int) -> None:
    rng = np.random.default_rng(7)
    future = hard_quaternions(num, rng)
    now = rng.permutation(hard_quaternions(num, rng))
    for representation in get_args(Representation):
        there = convert_rotation(future, "quaternion_xyzw", representation)
        back = convert_rotation(there, representation, "quaternion_xyzw")
        assert angle_between(future, back, "quaternion_xyzw") < 1e-6, representation
        single = convert_rotation(there.astype(np.float32), representation, "quaternion_xyzw")
        assert angle_between(future, single, "quaternion_xyzw") < 1e-5, representation
    here, there = rng.uniform(-2, 2, (2, num, 3))
    seen = relative_position(here, there, now, "quaternion_xyzw")
    # A change of frame keeps distances.
    moved = np.linalg.norm(there - here, axis=1)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), moved, atol=1e-12)
    back = absolute_position(here, seen, now, "quaternion_xyzw")
    np.testing.assert_allclose(back, there, atol=1e-12)
    turned = relative_rotation(now, future, "quaternion_xyzw")
    reached = absolute_rotation(now, turned, "quaternion_xyzw")
    assert angle_between(reached, future, "quaternion_xyzw") < 1e-6
