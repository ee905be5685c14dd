"""A policy continues planned actions: exactly the committed ones, closely the others."""

import dataclasses

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.transforms.action_transforms import MaskActions, RelativeActions
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation, RelativePose
from tests.train.conftest import untrained, with_data, without_params
from tests.train.policy.test_policy import shown
from train.octo.octo_config import DiffusionConfig, RegressionConfig
from train.policy import PlannedActions, Policy, PolicyConfig, PolicySpec, RealTimeChunking
from train.policy.planned_actions import check_blended, check_planned

TEXT = "pick up the bowl"
OFFSETS = ("dx", "dy", "dz")
STATE = ("x_m", "y_m", "z_m")


@pytest.fixture
def policy(real_time_policy):
    """A diffusion head of chunks of 4."""
    yield real_time_policy
    for env in range(4):
        real_time_policy.forget(env)


@pytest.fixture(scope="module")
def relative_policy(policy_config):
    """A regression head whose actions are relative to the state, the only observation."""
    config = with_data(
        policy_config,
        observations=("proprio",),
        transforms=(RelativeActions(OFFSETS, state_dims=STATE),),
        model={"head": RegressionConfig("l1", 4, 7), "images": ()},
    )
    return Policy(untrained(config), config=PolicyConfig(batch_size=2, real_time_chunking=True))


ANGLES, STATE_ANGLES = ("drx", "dry", "drz"), ("rx_rad", "ry_rad", "rz_rad")


def converted(target, source="axis_angle"):
    """Learns the rotation of the actions in another representation."""
    return ConvertActionRotation(ANGLES, source, target)


def relative_pose(target):
    return RelativePose(
        OFFSETS,
        ANGLES,
        "axis_angle",
        state_position=STATE,
        state_rotation=STATE_ANGLES,
        target=target,
    )


@pytest.mark.parametrize(
    ("transforms", "learned"),
    [
        ((), "axis_angle"),
        ((converted("axis_angle"),), "axis_angle"),
        ((converted("quaternion_wxyz"),), "quaternion_wxyz"),
        ((converted("rot6d"),), None),
        ((relative_pose("euler_xyz"),), None),
        ((MaskActions(ANGLES),), None),
    ],
)
def test_target_poses_are_blended_only_in_numbers_that_have_a_mean(
    policy_config, transforms, learned
):
    width = 7 + sum(getattr(t, "target", "") == "rot6d" for t in transforms) * 3
    head = RegressionConfig("l1", 4, width)
    config = with_data(policy_config, transforms=transforms, model={"head": head})
    checkpoint = without_params(config)
    for values in checkpoint.datasets.values():
        values["conventions"]["target_poses"] = True
    spec = PolicySpec.of(checkpoint)
    if learned is None:
        check_blended(spec)
        return
    with pytest.raises(UserError, match=rf"found {learned}: .*--execution naive_async.*rot6d"):
        Policy(checkpoint, config=PolicyConfig(real_time_chunking=True))
    guided = dataclasses.replace(spec.model, head=DiffusionConfig(action_horizon=4, action_dim=7))
    check_blended(dataclasses.replace(spec, model=guided))
    changes = dataclasses.replace(spec.conventions, target_poses=False)
    check_blended(dataclasses.replace(spec, conventions=changes))


def chunks_of(policy, previous=None, *, seed=1, envs=(0,)):
    """The chunks that follow one observed step, and so are of the same noise."""
    for env in envs:
        policy.reset(env, TEXT)
        policy.observe({env: shown(0)})
    return policy.infer({env: shown(seed + env) for env in envs}, previous)


@pytest.mark.parametrize("name", ["policy", "relative_policy"])
def test_a_chunk_begins_with_the_committed_actions_and_is_near_the_others(name, request):
    policy = request.getfixturevalue(name)
    old = chunks_of(policy, seed=5)[0]
    plain = chunks_of(policy)[0]
    for delay in range(4):
        planned = PlannedActions(old[1:], delay)
        chunk = chunks_of(policy, {0: planned})[0]
        assert (chunk.dtype, chunk.shape) == (np.float32, (4, 7))
        np.testing.assert_array_equal(chunk[:delay], planned.actions[:delay])
        apart, unguided = (np.abs(c[:3] - old[1:])[delay:].sum() for c in (chunk, plain))
        assert apart < unguided if delay < 3 else apart == 0
        # Behind the plan a chunk is free: of the head that blends, it is the one without a plan.
        assert (name == "policy") or np.array_equal(chunk[3:], plain[3:])


def test_without_a_plan_chunks_are_bitwise_the_same(policy, served_policy):
    expected = chunks_of(served_policy, envs=(0, 3))
    for previous in (None, {}, {0: None}):
        found = chunks_of(policy, previous, envs=(0, 3))
        assert list(found) == [0, 3]
        np.testing.assert_array_equal([*found.values()], [*expected.values()])
    # The plan of one environment is not that of another.
    planned = PlannedActions(expected[0] + 1, 1)
    mixed = chunks_of(policy, {0: planned}, envs=(0, 3))
    assert list(mixed) == [0, 3]
    np.testing.assert_array_equal(mixed[3], expected[3])
    np.testing.assert_array_equal(mixed[0][0], expected[0][0] + 1)
    with pytest.raises(UserError, match=r"Make it with PolicyConfig\(real_time_chunking=True\)"):
        chunks_of(served_policy, {0: planned})
    for env in (0, 3):
        served_policy.forget(env)


def test_rows_of_a_guided_batch_do_not_mix(relative_policy):
    """Three environments in batches of two, of which the last is padded."""
    old = chunks_of(relative_policy, seed=5, envs=(0, 1, 2))
    plans = {env: PlannedActions(old[env][1:], 1) for env in old}
    together = chunks_of(relative_policy, plans, envs=(0, 1, 2))
    for env in old:
        alone = chunks_of(relative_policy, {env: plans[env]}, seed=1, envs=(env,))
        np.testing.assert_allclose(together[env], alone[env], atol=1e-5)
        np.testing.assert_array_equal(together[env][0], old[env][1])


def test_plans_that_do_not_fit_are_listed_and_change_no_history(policy):
    chunk = chunks_of(policy, envs=(0, 3))[0]
    seen = policy.batch([0])["observation"]["proprio"]
    previous = {
        0: PlannedActions(chunk[2:], 3),
        3: PlannedActions(np.full((5, 7), np.nan), -1),
        4: None,
    }
    with pytest.raises(UserError) as caught:
        policy.infer({0: shown(), 3: shown()}, previous)
    assert caught.value.where == "policy, previous"
    assert caught.value.expected.startswith("1 to 4 planned actions of 7 finite values")
    assert caught.value.found.split("; ") == [
        "environment 0: a delay of 3 steps with 2 planned actions",
        "environment 3: 5 actions",
        "environment 3: values that are not finite",
        "environment 3: a delay of -1 steps with 5 planned actions",
        "environment 4: not observed",
    ]
    assert "PlannedActions(chunk[executed:], delay)" in caught.value.remedy
    np.testing.assert_array_equal(policy.batch([0])["observation"]["proprio"], seen)
    for actions, found in (
        (chunk[:, :6], "float32[4, 6]"),
        (np.zeros((2, 7), int), "int64[2, 7]"),
        (chunk[:0], "0 actions"),
    ):
        with pytest.raises(UserError) as caught:
            policy.infer({0: shown()}, {0: PlannedActions(actions, 0)})
        assert caught.value.found == f"environment 0: {found}"
    with pytest.raises(UserError, match="found environment 0: a ndarray instead of PlannedActions"):
        check_planned({0: chunk}, [0], chunk.shape)


def test_a_policy_acts_while_it_predicts(policy):
    policy.reset(1, TEXT)
    with RealTimeChunking.of(policy, 1, execute_horizon=2, delay=1, when_late="wait") as act:
        actions = [act(shown(step)) for step in range(7)]
        act.reset()
        policy.reset(1, TEXT)
        again = [act(shown(step)) for step in range(7)]
    assert [action.shape for action in actions] == [(7,)] * 7
    np.testing.assert_array_equal(again, actions)
    # The window of the chunk that is asked at step 2 has steps 1 and 2.
    policy.reset(1, TEXT)
    first = policy.infer({1: shown(0)})[1]
    policy.observe({1: shown(1)})
    second = policy.infer({1: shown(2)}, {1: PlannedActions(first[2:], 1)})[1]
    np.testing.assert_array_equal(actions[:3], first[:3])
    np.testing.assert_array_equal(actions[2:4], second[:2])


def test_warming_up_runs_both_programs_and_is_no_call(policy):
    before = policy.latency.num_calls
    policy.warm_up()
    assert policy.latency.num_calls == before
