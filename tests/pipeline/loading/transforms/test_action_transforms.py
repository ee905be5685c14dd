"""Relative, masked and padded actions: their numbers, their inverses, and what they refuse."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from pipeline.config_checks import ConfigError
from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.loading.transforms.action_dims import ACTION_MASK
from pipeline.loading.transforms.action_transforms import (
    MaskActions,
    PadActions,
    RelativeActions,
)
from pipeline.loading.transforms.transform import ActionTransform, Transform
from tests.pipeline.loading.transforms.action_batches import (
    STATE,
    make_batch,
    make_spec,
    there_and_back,
)

SPEC = make_spec(("x_m", "y_m", "yaw_rad", "gripper"), ("yaw_rad", "x_m", "q_m"), raw=["gripper"])
TRANSFORMS = (
    RelativeActions(("x_m", "yaw_rad")),
    RelativeActions(("y_m", "x_m"), state_dims=("q_m", "x_m")),
    MaskActions(("y_m", "gripper")),
    PadActions(7),
    PadActions(4),
)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_inverse_gives_the_actions_back(transform: ActionTransform) -> None:
    assert isinstance(transform, Transform)
    assert isinstance(transform, ActionTransform)
    batch = make_batch(SPEC)
    _, back = there_and_back(transform, batch, SPEC)
    expected = batch[ACTION][:, -1].copy()
    if isinstance(transform, MaskActions):
        expected[..., [1, 3]] = 0.0
    np.testing.assert_allclose(back, expected, atol=1e-6)


def test_relative_actions_by_numbers() -> None:
    """Chunks are relative to the state at their own step of the window."""
    spec = make_spec(("x_m", "y_m"), ("y_m", "x_m"), sizes=(1, 2, 2))
    batch = make_batch(spec) | {
        ACTION: np.array([[[[1, 5], [2, 6]], [[2, 6], [3, 7]]]], np.float32),
        STATE: np.array([[[50, 1], [60, 2]]], np.float32),
    }
    after = RelativeActions(("x_m",)).apply(batch, spec, None)
    np.testing.assert_array_equal(after[ACTION], [[[[0, 5], [1, 6]], [[0, 6], [1, 7]]]])
    assert after[ACTION_MASK] is batch[ACTION_MASK]
    named = RelativeActions(("y_m",), state_dims=("x_m",)).apply(batch, spec, None)
    np.testing.assert_array_equal(named[ACTION][..., 1], [[[4, 5], [4, 5]]])
    predicted = np.array([[[10, 1], [20, 2]]], np.float32)
    back = RelativeActions(("x_m", "y_m")).invert(predicted, batch, spec)
    np.testing.assert_array_equal(back, [[[12, 61], [22, 62]]])


def test_relative_actions_are_computed_in_float64() -> None:
    spec = make_spec(("x_m",), ("x_m",), sizes=(1, 1, 1))
    # In float32 the sum rounds to even: 2**24 + 1 is no float32, but half of it is exact.
    batch = make_batch(spec) | {
        ACTION: np.full((1, 1, 1, 1), 2.0**24, np.float32),
        STATE: np.full((1, 1, 1), -1.0, np.float32),
    }
    after = RelativeActions(("x_m",)).apply(batch, spec, None)
    assert after[ACTION].item() == np.float32(2.0**24 + 1.0)
    assert after[ACTION].dtype == np.float32


def test_a_longer_history_of_the_state_gives_its_last_steps() -> None:
    spec = make_spec(("x_m",), ("x_m",), sizes=(2, 2, 3))
    batch = make_batch(spec)
    longer = dataclasses.replace(spec[STATE], shape=(2, 5, 1))
    history = np.concatenate([np.full((2, 3, 1), 99.0, np.float32), batch[STATE]], axis=1)
    transform = RelativeActions(("x_m",))
    found = transform.apply(batch | {STATE: history}, spec | {STATE: longer}, None)
    np.testing.assert_array_equal(found[ACTION], transform.apply(batch, spec, None)[ACTION])


def test_masked_dimensions_are_0_in_a_batch_and_a_constant_at_rollout() -> None:
    transform = MaskActions(("gripper", "x_m"), value=0.5)
    batch = make_batch(SPEC)
    after, back = there_and_back(transform, batch, SPEC)
    np.testing.assert_array_equal(after[ACTION][..., [0, 3]], 0)
    np.testing.assert_array_equal(after[ACTION][..., [1, 2]], batch[ACTION][..., [1, 2]])
    assert not after[ACTION_MASK][..., [0, 3]].any()
    np.testing.assert_array_equal(after[ACTION_MASK][..., [1, 2]], batch[ACTION_MASK][..., [1, 2]])
    np.testing.assert_array_equal(back[..., [0, 3]], 0.5)
    leaf = transform.spec_after(SPEC)[ACTION]
    assert leaf.raw == leaf.unused == {"gripper", "x_m"}
    assert leaf.dims == SPEC[ACTION].dims


def test_padded_dimensions_are_masked_and_cut_off_at_rollout() -> None:
    batch = make_batch(SPEC)
    after, _ = there_and_back(PadActions(6), batch, SPEC)
    np.testing.assert_array_equal(after[ACTION][..., :4], batch[ACTION])
    np.testing.assert_array_equal(after[ACTION][..., 4:], 0)
    np.testing.assert_array_equal(after[ACTION_MASK][..., :4], batch[ACTION_MASK])
    assert not after[ACTION_MASK][..., 4:].any()
    spec = PadActions(6).spec_after(SPEC)
    assert spec[ACTION].dims == ("x_m", "y_m", "yaw_rad", "gripper", "unused_0", "unused_1")
    assert spec[ACTION].raw == {"gripper", "unused_0", "unused_1"}
    assert spec[ACTION].unused == {"unused_0", "unused_1"}
    assert spec[ACTION_MASK].dims == spec[ACTION].dims


LACKING = make_spec(("x_m", "unused_0"), ("x_m",), sizes=(2, 3, 4))
SHORT = SPEC | {STATE: dataclasses.replace(SPEC[STATE], shape=(2, 1, 3))}


@pytest.mark.parametrize(
    ("transform", "spec", "message"),
    [
        (
            RelativeActions(("x_mm",)),
            SPEC,
            r"RelativeActions.relative: expected dimensions of action, which are x_m, y_m, "
            r"yaw_rad, gripper; found x_mm. Did you mean x_m\?",
        ),
        (
            RelativeActions(("y_m",)),
            SPEC,
            "RelativeActions.relative: expected dimensions of observation/proprio, which are "
            "yaw_rad, x_m, q_m; found y_m",
        ),
        (
            RelativeActions(("y_m",), state_dims=("p_m",)),
            SPEC,
            r"RelativeActions.state_dims: expected .*; found p_m",
        ),
        (
            RelativeActions(("x_m",), state="state"),
            SPEC,
            "expected one of the vectors action, .*; found observation/state",
        ),
        (
            RelativeActions(("gripper",), state_dims=("q_m",)),
            SPEC,
            "RelativeActions.relative: expected dimensions in the dataset's units; found gripper, "
            "a gripper from 0 to 1 or unused",
        ),
        (
            RelativeActions(("x_m",)),
            SHORT,
            r"RelativeActions.state: expected a vector with 3 steps, one for each step of the "
            r"window; found observation/proprio float32\[2,1,3\]. Leave the state out of "
            "data.current_only",
        ),
        (MaskActions(("z_m",)), SPEC, "MaskActions.dims: expected dimensions of action"),
        (
            PadActions(3),
            SPEC,
            "PadActions.size: expected at least 4, the dimensions of the action; found 3. Give the "
            "action_dim of the model's head",
        ),
        (PadActions(3), LACKING, "PadActions: expected new names .*; found unused_0"),
    ],
)
def test_what_does_not_fit_the_arrays_is_refused(transform: Any, spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        transform.spec_after(spec)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelativeActions(()), "relative: expected at least one name; found none"),
        (lambda: RelativeActions(("x", "x")), "relative: expected different names; found x, x"),
        (
            lambda: RelativeActions(("x", "y"), state_dims=("x",)),
            "state_dims: expected 2 names; found 1: x",
        ),
        (lambda: MaskActions(()), "dims: expected at least one name; found none"),
        (lambda: MaskActions(("x",), float("nan")), "value: expected a finite number; found nan"),
        (lambda: PadActions(0), "size: expected at least 1; found 0"),
    ],
)
def test_configs_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_sample_without_the_state_is_reported() -> None:
    batch = make_batch(SPEC)
    batch["observation/pad_mask_dict/proprio"][1, 2] = False
    with pytest.raises(
        UserError,
        match="RelativeActions, observation/proprio: expected the state of every sample, which "
        "actions are relative to; found none in 1 of 2 samples",
    ):
        RelativeActions(("x_m",)).apply(batch, SPEC, None)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_survives_json(transform: ActionTransform) -> None:
    text = json.dumps(to_json_values(transform))
    assert from_json_text(type(transform), text, where="x", remedy="y") == transform
