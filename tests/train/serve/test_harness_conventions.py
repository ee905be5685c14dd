"""Conventions that integrations with vla-eval get wrong, each with numbers that a mistake changes.

Source: the pitfalls that vla-eval lists in docs/reproductions/common-pitfalls.md.
"""

import dataclasses

import numpy as np
import pytest

from pipeline.data.conventions import Gripper, PoseRotation
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from tests.train.serve.harness_client import message, observation
from train.evaluate.libero.simulator_conventions import axis_angle
from train.policy.policy import PolicyConfig
from train.serve.client_session import ServeConfig
from train.serve.vla_eval.harness_codec import CODEC
from train.serve.vla_eval.harness_conversion import Conversion
from train.serve.vla_eval.harness_session import VlaEvalSession
from train.serve.vla_eval.harness_specs import action_spec, observation_spec, pose_rotation

LIBERO = "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark"
ROBOCEREBRA = "vla_eval.benchmarks.robocerebra.benchmark:RoboCerebraBenchmark"
OTHER = "vla_eval.benchmarks.simpler.benchmark:SimplerEnvBenchmark"
PROPRIO = "observation/proprio"


@pytest.fixture
def harness(monkeypatch):
    """The harness's LIBERO module, whose import sets the renderer for the whole process."""
    for name in ("EGL_PLATFORM", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "osmesa")
    from vla_eval.benchmarks.libero import benchmark

    return benchmark


@pytest.fixture
def policy(served_policy, monkeypatch):
    """A policy that accepts images of any size, of which a test may change the spec."""
    monkeypatch.setattr(served_policy, "config", PolicyConfig(resize=True))
    monkeypatch.setattr(served_policy, "spec", served_policy.spec)
    return served_policy


def with_conventions(policy, **fields):
    conventions = dataclasses.replace(policy.conventions, **fields)
    policy.spec = dataclasses.replace(policy.spec, conventions=conventions)
    return policy


def with_rotations_below_pi(policy):
    """The policy of a dataset whose axis angles are at most pi."""
    lower = policy.spec.statistics[PROPRIO].max.copy()
    lower[3] = np.pi + 5e-4  # rounding
    statistics = dataclasses.replace(policy.spec.statistics[PROPRIO], max=lower)
    changed = {**policy.spec.statistics, PROPRIO: statistics}
    policy.spec = dataclasses.replace(policy.spec, statistics=changed)
    return policy


def shown_to(policy, monkeypatch, benchmark, payload):
    """What a policy is shown of an observation, and what a benchmark gets for an open gripper."""
    seen = {}

    def infer(observations):
        seen.update(observations[0])
        return {0: np.ones((4, 7), np.float32)}

    monkeypatch.setattr(policy, "infer", infer)
    session = VlaEvalSession(policy, ServeConfig(protocol="vla-eval"), iter(range(9)))
    hello = {"protocol_version": 1, "benchmark": benchmark}
    for kind, content in (("hello", hello), ("episode_start", {})):
        session.answer(CODEC.pack(message(kind, content)))
    reply = session.answer(CODEC.pack(message("observation", payload)))
    session.close()
    return seen, reply["payload"]["actions"]


# --- the rotation of the state


def quaternions():
    """x y z w of about half a turn about x, as LIBERO's arm has it: w has both signs."""
    vectors = np.array([3.137, 0.0, -0.1]) + np.random.default_rng(0).normal(0, 0.02, (50, 3))
    angles = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.hstack([vectors / angles * np.sin(angles / 2), np.cos(angles / 2)])


def test_rotations_are_asked_for_with_the_sign_that_published_states_have(harness, policy):
    ours = np.stack([axis_angle(q) for q in quaternions()])
    kept = np.stack([harness._quat_to_axisangle_robosuite(q) for q in quaternions()])
    normalised = np.stack([harness.quat_to_axisangle(q) for q in quaternions()])
    np.testing.assert_allclose(kept, ours, atol=1e-5)
    is_negative = quaternions()[:, 3] < 0
    assert 10 < is_negative.sum() < 40
    # The harness's default is another vector at each negative w.
    assert (np.abs(normalised - ours).max(axis=1) > 6).tolist() == is_negative.tolist()
    params = Conversion(policy, LIBERO).params
    assert params == {
        "send_wrist_image": True,
        "send_state": True,
        "env_seed": 0,
        "quat_no_antipodal": True,
    }
    sent = harness.LIBEROBenchmark(**params)
    assert sent._quat_to_aa is harness._quat_to_axisangle_robosuite
    assert sent.env_seed == 0
    assert Conversion(with_rotations_below_pi(policy), LIBERO).params["quat_no_antipodal"] is False


def test_a_benchmark_without_that_parameter_is_converted(harness, policy, monkeypatch):
    assert "quat_no_antipodal" not in Conversion(policy, ROBOCEREBRA).params
    payload = observation()
    for quaternion in quaternions()[:10]:
        payload["states"][3:6] = harness.quat_to_axisangle(quaternion)
        seen, _ = shown_to(policy, monkeypatch, ROBOCEREBRA, payload)
        np.testing.assert_allclose(seen["proprio"][3:6], axis_angle(quaternion), atol=1e-5)
        np.testing.assert_array_equal(seen["proprio"][:3], payload["states"][:3])
    with_rotations_below_pi(policy)
    seen, _ = shown_to(policy, monkeypatch, ROBOCEREBRA, payload)
    np.testing.assert_array_equal(seen["proprio"], payload["states"])


def test_a_rotation_as_in_the_training_data_stays_bitwise_identical(policy, monkeypatch):
    payload = observation(3)
    seen, _ = shown_to(policy, monkeypatch, LIBERO, payload)
    np.testing.assert_array_equal(seen["proprio"], payload["states"])
    payload["states"][3:6] = 0.0
    seen, _ = shown_to(policy, monkeypatch, LIBERO, payload)
    np.testing.assert_array_equal(seen["proprio"], payload["states"])


# --- the source of the state


def test_the_state_is_the_sensors_and_not_the_controllers(policy, monkeypatch):
    payload = observation()
    seen, _ = shown_to(policy, monkeypatch, LIBERO, payload)
    np.testing.assert_array_equal(seen["proprio"], payload["states"])
    assert (payload["states"] != payload["controller_states"]).all()


def test_a_state_is_never_made_up(policy, monkeypatch):
    payload = observation()
    payload["state"] = payload.pop("states")
    seen, _ = shown_to(policy, monkeypatch, OTHER, payload)
    np.testing.assert_array_equal(seen["proprio"], payload["state"])
    del payload["state"]
    with pytest.raises(UserError, match="found states: missing; sent: images/agentview"):
        shown_to(policy, monkeypatch, LIBERO, payload)


# --- grippers


@pytest.mark.parametrize(
    ("opens", "closes", "form", "elsewhere"),
    [
        (-1.0, 1.0, "binary_close_positive", -1.0),
        (1.0, -1.0, "binary_close_negative", 1.0),
        (0.0, 1.0, "binary_close_01", 0.0),
        (1.0, 0.0, "unknown", 1.0),
    ],
)
def test_an_open_gripper_is_open_in_libero(policy, monkeypatch, opens, closes, form, elsewhere):
    with_conventions(policy, gripper_open=opens, gripper_close=closes)
    _, action = shown_to(policy, monkeypatch, LIBERO, observation())
    # The simulator opens at -1; the benchmark closes at every value from 0 on.
    assert action[6] == -1.0
    conventions = Conversion(policy, LIBERO).conventions
    assert action_spec(policy.spec, conventions)["gripper"]["format"] == "binary_close_positive"
    _, action = shown_to(policy, monkeypatch, OTHER, observation())
    assert action[6] == elsewhere
    conventions = Conversion(policy, OTHER).conventions
    assert action_spec(policy.spec, conventions)["gripper"]["format"] == form


def test_a_continuous_gripper_has_the_format_of_its_range(policy):
    gripper = Gripper(6, 1.0, 0.0, "continuous")
    none = {"gripper_dim": None, "gripper_open": 1.0, "gripper_close": 0.0}
    with_conventions(policy, grippers=(gripper,), **none)
    assert action_spec(policy.spec, policy.conventions)["gripper"]["format"] == "continuous_01"
    with pytest.raises(UserError, match=r"expected what LIBERO's controller takes: gripper_dim"):
        Conversion(policy, LIBERO)


# --- images


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ("rotated_180", np.s_[:, :]),
        ("upright", np.s_[:, ::-1]),
        ("flipped_vertically", np.s_[::-1, ::-1]),
    ],
)
def test_images_lie_as_in_the_dataset(harness, policy, monkeypatch, orientation, turned):
    with_conventions(policy, image_orientation=orientation)
    payload = observation()
    frame = payload["images"]["agentview"]
    payload["images"]["agentview"] = harness.preprocess_libero_image(frame)
    for benchmark, expected in ((LIBERO, turned), (OTHER, np.s_[:, :])):
        seen, _ = shown_to(policy, monkeypatch, benchmark, payload)
        for camera, name in (("agentview", "image_primary"), ("wrist", "image_wrist")):
            np.testing.assert_array_equal(seen[name], payload["images"][camera][expected])


def test_images_of_another_size_are_refused_before_the_first_episode(policy):
    policy.config = PolicyConfig(resize=False)
    with pytest.raises(UserError) as caught:
        Conversion(policy, LIBERO)
    assert str(caught.value) == (
        f"the benchmark {LIBERO}, images: expected a policy that reads images of 256x256, which "
        "the benchmark sends; found image_primary uint8[128,128,3], image_wrist uint8[128,128,3]. "
        "Start octograin serve with --resize."
    )


# --- rotations and positions of the action


def specs(policy, **conventions):
    policy = with_conventions(policy, **conventions)
    found = action_spec(policy.spec, policy.conventions)
    return {key: one["format"] for key, one in found.items()}


def with_action_dims(policy, *dims):
    action = LeafSpec("float32", (len(dims),), dims)
    features = {**policy.spec.features, "action": action}
    policy.spec = dataclasses.replace(policy.spec, features=features, action_dims=dims)
    return policy


def test_positions_are_deltas_or_absolute_by_their_names(policy):
    rest = ("drx", "dry", "drz", "gripper")
    assert specs(with_action_dims(policy, "dx", "dy", "dz", *rest))["position"] == "delta_xyz"
    assert specs(with_action_dims(policy, "x_m", "y_m", "z_m", *rest))["position"] == "absolute_xyz"
    assert specs(with_action_dims(policy, "a", "b", "c", *rest))["position"] == "unknown"


def test_six_numbers_of_a_rotation_are_not_taken_for_interleaved_ones(policy):
    with_action_dims(policy, "x_m", "y_m", "z_m", *"abcdef", "gripper")
    policy = with_conventions(policy, gripper_dim=9)
    # Read row by row, as the harness's `rot6d_interleaved`, they would be another rotation.
    assert specs(policy, rotation="rot6d")["rotation"] == "rot6d_contiguous"
    assert specs(policy, rotation="rot6d_rows")["rotation"] == "rot6d_rows"


def test_euler_angles_are_not_taken_for_an_axis(policy):
    assert specs(policy, rotation="euler_xyz")["rotation"] == "euler_xyz"
    with pytest.raises(UserError, match=r"expected .* rotation = axis_angle; found .* euler_xyz"):
        Conversion(policy, LIBERO)


def test_a_policy_that_gives_target_poses_is_refused(policy):
    with_conventions(policy, target_poses=True)
    with pytest.raises(UserError, match=r"commands of its controller; found target poses\. Use"):
        Conversion(policy, LIBERO)
    with pytest.raises(UserError, match="ensemble: expected target poses with rotation rot6d or"):
        ServeConfig(ensemble=0.1).make_execution(policy)


def test_actions_of_unknown_parts_are_not_described_as_a_pose(policy):
    assert specs(policy, rotation="none") == {"actions": "unknown"}
    assert specs(policy, rotation="quaternion_xyzw") == {"actions": "unknown"}


@pytest.mark.parametrize(
    ("rotations", "found"),
    [
        ([(3, "axis_angle")], ("axis_angle", range(3, 6))),
        ([(3, "euler_xyz")], ("euler_xyz", range(3, 6))),
        ([(3, "quaternion_wxyz")], ("quaternion_wxyz", range(3, 7))),
        ([(0, "axis_angle"), (4, "axis_angle")], None),
    ],
)
def test_a_states_rotation_is_what_the_conventions_say(policy, rotations, found):
    poses = tuple(PoseRotation(PROPRIO, dim, kind) for dim, kind in rotations)
    names = with_conventions(policy, rotations=poses).conventions.rotation_names
    dims = policy.spec.features[PROPRIO].dims
    leaf = LeafSpec("float32", (8,), dims, rotations=names(PROPRIO, dims))
    assert pose_rotation(leaf) == found


def test_a_state_of_unknown_parts_has_a_format_that_no_benchmark_has(policy):
    config = ServeConfig(protocol="vla-eval")
    assert observation_spec(policy, config)["state"]["format"] == "eef_pos3_axisangle3_gripper2"
    dims = tuple(f"joint_{number}_rad" for number in range(8))
    features = {**policy.spec.features, PROPRIO: LeafSpec("float32", (8,), dims)}
    policy.spec = dataclasses.replace(policy.spec, features=features)
    assert observation_spec(policy, config)["state"]["format"] == "unknown"


def test_the_harness_itself_finds_mismatches(harness, policy):
    from vla_eval.specs import DimSpec, check_specs

    def compared():
        conversion = Conversion(policy, OTHER)
        ours = [
            action_spec(policy.spec, conversion.conventions),
            observation_spec(policy, ServeConfig(protocol="vla-eval")),
        ]
        actions, shown = (
            {key: DimSpec.from_dict(value) for key, value in one.items()} for one in ours
        )
        libero = harness.LIBEROBenchmark(send_wrist_image=True, send_state=True)
        return check_specs(actions, libero.get_action_spec(), shown, libero.get_observation_spec())

    assert compared() == []
    with_conventions(policy, gripper_open=1.0, gripper_close=-1.0, rotation="euler_xyz")
    assert sorted(compared()) == [
        "action [gripper]: gripper: binary_close_negative vs binary_close_positive",
        "action [rotation]: rotation: euler_xyz vs axis_angle",
    ]
