"""Relative poses and other representations of rotations in actions."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.config_checks import ConfigError
from pipeline.data.rotations import (
    Representation,
    convert_rotation,
    num_values,
    rotation_angle,
)
from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.loading.batch import BatchSpec, FlatBatch
from pipeline.loading.transforms.action_dims import ACTION_MASK
from pipeline.loading.transforms.action_transforms import RelativeActions
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation, RelativePose
from pipeline.loading.transforms.transform import ActionTransform, Transform
from tests.pipeline.loading.transforms.action_batches import (
    STATE,
    make_batch,
    make_spec,
    there_and_back,
)

PART = pathlib.Path(__file__).parents[3] / "data" / "golden" / "rotations" / "rotations.npz"
XYZ = ("x_m", "y_m", "z_m")
TURN = ("rx_rad", "ry_rad", "rz_rad")
ARM = (*XYZ, *TURN, "gripper")
SPEC = make_spec(ARM, (*XYZ, *TURN, "width_m"), raw=["gripper"])


def names(prefix: str, representation: Representation) -> tuple[str, ...]:
    """Returns as many names as a rotation has numbers."""
    return tuple(f"{prefix}{number}" for number in range(num_values(representation)))


def with_rotations(
    batch: FlatBatch, spec: BatchSpec, held: Mapping[str, tuple[tuple[str, ...], Representation]]
) -> FlatBatch:
    """The batch with rotations, at most 3 rad, at the named dimensions of some arrays."""
    changed = {key: array.copy() for key, array in batch.items()}
    for key, (dims, representation) in held.items():
        at = [spec[key].dims.index(dim) for dim in dims]
        rng = np.random.default_rng(len(dims))
        vectors = rng.uniform(-1.7, 1.7, (*spec[key].shape[:-1], 3))
        values = convert_rotation(vectors, "axis_angle", representation)
        changed[key][..., at] = values.astype(np.float32)
    return changed


def largest_angle(first: np.ndarray, second: np.ndarray, representation: Representation) -> float:
    exact = (values.astype(np.float64) for values in (first, second))
    return rotation_angle(*exact, representation).max()


@pytest.mark.parametrize("target", get_args(Representation))
@pytest.mark.parametrize("source", ["axis_angle", "quaternion_wxyz", "rot6d", "euler_xyz"])
def test_every_representation_of_an_action_comes_back(
    source: Representation, target: Representation
) -> None:
    turn, held = names("r", source), names("s", "quaternion_xyzw")
    # The rotation is neither at the end nor in its own order.
    spec = make_spec(("a", *turn[::-1], "x", "y", "z", "b"), ("x", "y", "z", *held))
    batch = with_rotations(
        make_batch(spec), spec, {ACTION: (turn, source), STATE: (held, "quaternion_xyzw")}
    )
    at = [spec[ACTION].dims.index(name) for name in turn]
    others = [dim for dim in range(len(spec[ACTION].dims)) if dim not in at]
    for transform in (
        ConvertActionRotation(turn, source, target),
        RelativePose(
            ("x", "y", "z"),
            turn,
            source,
            state_rotation=held,
            state_representation="quaternion_xyzw",
            target=target,
        ),
    ):
        assert isinstance(transform, Transform)
        assert isinstance(transform, ActionTransform)
        _, back = there_and_back(transform, batch, spec)
        given = batch[ACTION][:, -1]
        assert largest_angle(back[..., at], given[..., at], source) < 1e-5
        np.testing.assert_allclose(back[..., others], given[..., others], atol=2e-6)


def test_a_relative_pose_by_numbers() -> None:
    """The tool is turned to the left and lies at (1, 1, 1), later it has turned about its x."""
    spec = make_spec(ARM, (*XYZ, *TURN), sizes=(1, 1, 1), raw=["gripper"])
    quarter = np.pi / 2
    batch = make_batch(spec) | {
        STATE: np.array([[[1, 1, 1, 0, 0, quarter]]], np.float32),
        # About fixed axes: first x, then z.
        ACTION: np.array([[[[1, 2, 1, quarter, 0, quarter, 1]]]], np.float32),
        ACTION_MASK: np.ones((1, 1, 1, 7), bool),
    }
    transform = RelativePose(XYZ, TURN, "euler_xyz", target="euler_xyz")
    after = transform.apply(batch, spec, None)
    expected = [1, 0, 0, quarter, 0, 0, 1]
    np.testing.assert_allclose(after[ACTION][0, 0, 0], expected, atol=1e-6)
    assert transform.spec_after(spec)[ACTION].dims == ARM
    six = dataclasses.replace(transform, target="rot6d")
    columns = six.apply(batch, spec, None)[ACTION][0, 0, 0]
    np.testing.assert_allclose(columns, [1, 0, 0, 1, 0, 0, 0, 0, 1, 1], atol=1e-6)
    predicted = np.array([[[1, 0, 0, 0, 0, 0, 1]]], np.float32)  # one metre along the tool's x
    back = transform.invert(predicted, batch, spec)
    np.testing.assert_allclose(back, [[[1, 2, 1, 0, 0, quarter, 1]]], atol=1e-6)


def test_dimensions_and_masks_follow_the_rotation() -> None:
    transform = RelativePose(XYZ, TURN, "axis_angle", prefix="left_")
    batch = with_rotations(make_batch(SPEC), SPEC, {ACTION: (TURN, "axis_angle")})
    batch[ACTION_MASK][0, 0, 0, 4] = False
    after, _ = there_and_back(transform, batch, SPEC)
    leaf = transform.spec_after(SPEC)[ACTION]
    assert leaf.dims == (*XYZ, *(f"left_rot6d_{n}" for n in range(6)), "gripper")
    assert leaf.raw == {"gripper"}
    assert leaf.rotations == {f"left_rot6d_{n}": "rot6d" for n in range(6)}
    # One number of a rotation that is not real makes all of the new ones so.
    assert not after[ACTION_MASK][0, 0, 0, 3:9].any()
    assert after[ACTION_MASK][0, 0, 0, [0, 1, 2, 9]].all()
    assert after[ACTION_MASK][1, :, :-1].all()
    assert not after[ACTION_MASK][:, :, -1].any()
    np.testing.assert_array_equal(after[ACTION][..., 9], batch[ACTION][..., 6])
    angles = ConvertActionRotation(TURN, "axis_angle", "euler_xyz").spec_after(SPEC)[ACTION]
    assert angles.dims[3:6] == ("euler_xyz_0_rad", "euler_xyz_1_rad", "euler_xyz_2_rad")


@pytest.mark.parametrize("target", ["quaternion_xyzw", "quaternion_wxyz"])
@pytest.mark.parametrize("source", ["euler_xyz", "quaternion_xyzw"])
def test_of_the_two_quaternions_of_a_rotation_one_is_learned(
    source: Representation, target: Representation
) -> None:
    # 0.002 rad apart; a roll beyond pi wraps, which negates the quaternion.
    angles = np.array([[np.pi - 0.001, 0.5, 1.0], [-np.pi + 0.001, 0.5, 1.0]])
    values = convert_rotation(angles, "euler_xyz", source)
    reals = convert_rotation(values, source, "quaternion_xyzw")[:, 3]
    np.testing.assert_allclose(reals, [0.119, -0.118], atol=1e-3)
    dims = names("r", source)
    spec = make_spec(dims, dims, sizes=(2, 1, 1))
    batch = make_batch(spec) | {ACTION: values.astype(np.float32)[:, None, None]}
    learned = ConvertActionRotation(dims, source, target).apply(batch, spec, None)[ACTION]
    real = target.removeprefix("quaternion_").index("w")
    np.testing.assert_allclose(learned[..., real].ravel(), [0.119, 0.118], atol=1e-3)
    np.testing.assert_allclose(learned[0], learned[1], atol=2e-3)


def test_two_arms_are_two_transforms() -> None:
    sides = ("left_", "right_")
    dims = tuple(f"{side}{name}" for side in sides for name in ARM)
    spec = make_spec(dims, dims, raw=["left_gripper", "right_gripper"])
    arms = [[tuple(side + name for name in part) for part in (XYZ, TURN)] for side in sides]
    held: dict[str, Any] = {}
    batch = make_batch(spec)
    for _, turn in arms:
        held = {ACTION: (turn, "axis_angle"), STATE: (turn, "axis_angle")}
        batch = with_rotations(batch, spec, held)
    chain = [
        RelativePose(*arm, "axis_angle", prefix=side) for arm, side in zip(arms, sides, strict=True)
    ]
    middle, last = chain[0].spec_after(spec), chain[1].spec_after(chain[0].spec_after(spec))
    assert last[ACTION].shape == (2, 3, 4, 20)
    assert len(set(last[ACTION].dims)) == 20
    first = chain[0].apply(batch, spec, None)
    second = chain[1].apply(first, middle, None)
    back = chain[1].invert(second[ACTION][:, -1], first, middle)
    back = chain[0].invert(back, batch, spec)
    for _, turn in arms:
        at = [dims.index(name) for name in turn]
        given = batch[ACTION][:, -1][..., at]
        assert largest_angle(back[..., at], given, "axis_angle") < 1e-5
    position = [dims.index(name) for name in (*arms[0][0], *arms[1][0])]
    np.testing.assert_allclose(back[..., position], batch[ACTION][:, -1][..., position], atol=2e-6)
    unnamed = dataclasses.replace(chain[1], prefix="")
    with pytest.raises(UserError, match=r"found rot6d_0, .*rot6d_5. Give the transform a `prefix`"):
        unnamed.spec_after(dataclasses.replace(chain[0], prefix="").spec_after(spec))


def test_quaternions_that_are_learned_have_a_positive_real_part() -> None:
    batch = with_rotations(
        make_batch(SPEC), SPEC, {ACTION: (TURN, "axis_angle"), STATE: (TURN, "axis_angle")}
    )
    transform = RelativePose(XYZ, TURN, "axis_angle", target="quaternion_wxyz")
    assert transform.apply(batch, SPEC, None)[ACTION][..., 3].min() >= 0


def test_predictions_that_are_not_finite_stay_so() -> None:
    batch = with_rotations(make_batch(SPEC), SPEC, {STATE: (TURN, "axis_angle")})
    predicted = np.ones((2, 4, 7), np.float32)
    predicted[0, 1, 4] = np.nan
    predicted[1, 2, 0] = np.inf
    same = dataclasses.replace(RelativePose(XYZ, TURN, "axis_angle"), target="axis_angle")
    found = same.invert(predicted, batch, SPEC)
    assert np.isnan(found[0, 1, 3:6]).all()
    assert not np.isfinite(found[1, 2, :3]).any()
    assert np.isfinite(np.delete(found.reshape(8, 7), [1, 6], axis=0)).all()
    converted = ConvertActionRotation(TURN, "euler_xyz", "axis_angle")
    assert np.isnan(converted.invert(predicted, {}, SPEC)[0, 1, 3:6]).all()


# --- recorded chunks


@pytest.fixture(scope="module", params=["part", "whole"])
def recorded(request: pytest.FixtureRequest) -> Mapping[str, np.ndarray]:
    if request.param == "part":
        return dict(np.load(PART))
    shared = request.getfixturevalue("shared")
    return dict(np.load(shared / "golden" / "rotations" / "rotations.npz"))


RECORDED: Mapping[str, Representation] = {
    "axis_angle": "axis_angle",
    "quat_xyzw": "quaternion_xyzw",
    "euler_extrinsic_xyz": "euler_xyz",
    "rot6d_columns": "rot6d",
}


def chunks(recorded: Mapping[str, np.ndarray], key: str) -> tuple[BatchSpec, FlatBatch]:
    """Recorded poses as a batch: a trajectory is a sample, the recorded steps its window."""
    turns = recorded[f"traj_{key}"]
    poses = np.concatenate([recorded["traj_position"], turns], axis=-1).astype(np.float32)
    now = recorded["chunk_now"]
    future = now[:, None] + 1 + np.arange(8)
    dims = (*XYZ, *names("r", RECORDED[key]))
    spec = make_spec(dims, dims, sizes=(len(poses), len(now), 8))
    return spec, make_batch(spec) | {ACTION: poses[:, future], STATE: poses[:, now]}


@pytest.mark.parametrize("source", ["axis_angle", "quat_xyzw", "euler_extrinsic_xyz"])
def test_recorded_chunks_relative_to_the_pose(
    recorded: Mapping[str, np.ndarray], source: str
) -> None:
    spec, batch = chunks(recorded, source)
    turn = spec[ACTION].dims[3:]
    for key, target in RECORDED.items():
        transform = RelativePose(XYZ, turn, RECORDED[source], target=target)
        after, back = there_and_back(transform, batch, spec)
        found = after[ACTION]
        np.testing.assert_allclose(found[..., :3], recorded["chunk_se3_position"], atol=1e-5)
        expected = recorded[f"chunk_se3_{key}"]
        assert largest_angle(found[..., 3:], expected, target) < 1e-5, key
        given = batch[ACTION][:, -1]
        assert largest_angle(back[..., 3:], given[..., 3:], RECORDED[source]) < 1e-5, key
        np.testing.assert_allclose(back[..., :3], given[..., :3], atol=1e-5)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("axis_angle", "chunk_delta_axis_angle_componentwise"),
        ("euler_extrinsic_xyz", "chunk_delta_euler_componentwise"),
    ],
)
def test_recorded_differences_of_the_numbers(
    recorded: Mapping[str, np.ndarray], source: str, key: str
) -> None:
    spec, batch = chunks(recorded, source)
    transform = RelativeActions(spec[ACTION].dims)
    after, back = there_and_back(transform, batch, spec)
    np.testing.assert_allclose(after[ACTION][..., :3], recorded["chunk_delta_position"], atol=1e-5)
    np.testing.assert_allclose(after[ACTION][..., 3:], recorded[key], atol=1e-5)
    np.testing.assert_allclose(back, batch[ACTION][:, -1], atol=1e-6)


# --- what is refused


STATED = SPEC | {ACTION: dataclasses.replace(SPEC[ACTION], rotations=dict.fromkeys(TURN, "a"))}


@pytest.mark.parametrize(
    ("transform", "spec", "message"),
    [
        (
            ConvertActionRotation(("rx", *TURN[1:]), "axis_angle", "rot6d"),
            SPEC,
            r"ConvertActionRotation.rotation: expected dimensions of action, .*; found rx. "
            "Name them as `octograin inspect` shows them",
        ),
        (
            RelativePose((*XYZ[:2], "gripper"), TURN, "axis_angle"),
            SPEC,
            "RelativePose.position: expected dimensions in the dataset's units; found gripper",
        ),
        (
            RelativePose(XYZ, TURN, "axis_angle", state_position=("x", "y", "z")),
            SPEC,
            "RelativePose.state_position: expected dimensions of observation/proprio",
        ),
        (
            RelativePose(XYZ, TURN, "axis_angle", state="pose"),
            SPEC,
            "RelativePose.position: expected one of the vectors .*; found observation/pose",
        ),
        (
            ConvertActionRotation(TURN, "axis_angle", "rot6d"),
            STATED,
            "ConvertActionRotation, action: expected rx_rad, ry_rad, rz_rad as axis_angle; found a "
            "in the dataset's conventions",
        ),
    ],
)
def test_what_does_not_fit_the_arrays_is_refused(transform: Any, spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        transform.spec_after(spec)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RelativePose(XYZ, TURN, "rot6d"),
            "rotation: expected 6 names; found 3: rx_rad, ry_rad, rz_rad",
        ),
        (
            lambda: RelativePose(XYZ[:2], TURN, "axis_angle"),
            "position: expected 3 names; found 2: x_m, y_m",
        ),
        (
            lambda: RelativePose(XYZ, TURN, "axis_angle", state_representation="rot6d"),
            "state_rotation: expected the 6 names of the state's rotation, rot6d; found none",
        ),
        (
            lambda: RelativePose(XYZ, ("z_m", *TURN[1:]), "axis_angle"),
            "rotation: expected other dimensions than the position; found z_m",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_values_that_are_no_rotation_are_reported() -> None:
    turn = names("q", "quaternion_xyzw")
    spec = make_spec((*XYZ, *turn), (*XYZ, *turn))
    batch = with_rotations(make_batch(spec), spec, {ACTION: (turn, "quaternion_xyzw")})
    batch[STATE][1, 2, 3:] = 0
    with pytest.raises(
        UserError,
        match=r"RelativePose, observation/proprio: expected rotations; found quaternion_xyzw of "
        "norm 0 is no rotation. Check the names and the representation",
    ):
        RelativePose(XYZ, turn, "quaternion_xyzw").apply(batch, spec, None)


@pytest.mark.parametrize(
    "transform",
    [
        RelativePose(XYZ, TURN, "axis_angle", state_representation="euler_xyz", prefix="left_"),
        ConvertActionRotation(TURN, "axis_angle", "rot6d"),
    ],
)
def test_a_transform_survives_json(transform: ActionTransform) -> None:
    text = json.dumps(to_json_values(transform))
    assert from_json_text(type(transform), text, where="x", remedy="y") == transform
