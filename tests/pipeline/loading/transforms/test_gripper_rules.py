"""Rules that turn predicted openings into commands, and how a config names them."""

import dataclasses
import json
import math
from typing import Any

import pytest

from pipeline.config_checks import ConfigError
from pipeline.data.conventions import Conventions, Gripper
from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.transforms.gripper_rules import (
    ContinuousGripper,
    GripperHysteresis,
    GripperRule,
    GripperThreshold,
    rules_by_index,
)

DIMS = ("x_m", "left", "y_m", "right_m")
HANDS = Conventions(
    "upright",
    "none",
    50.0,
    "kept",
    grippers=(Gripper(1, -1.0, 1.0), Gripper(3, 0.08, 0.0, "continuous")),
)
BASE = DataConfig((DatasetConfig("a"),), "")


def decided(rule: GripperRule, openings: list[float]) -> list[float]:
    """What a rule decides in one episode."""
    last: float | None = None
    found = []
    for opening in openings:
        last = rule.decide(opening, last)
        found.append(last)
    return found


@pytest.mark.parametrize(
    ("rule", "openings", "expected"),
    [
        (GripperThreshold("left"), [0.4, 0.5, 0.51, -2, 2], [0, 0, 1, 0, 1]),
        (GripperThreshold("left", 0.9), [0.9, 0.91], [0, 1]),
        (
            GripperHysteresis("left", 0.75, 0.25),
            [0.6, 0.3, 0.25, 0.2, 0.7, 0.75, 0.8, 0.5, 0.1],
            [1, 1, 1, 0, 0, 0, 1, 1, 0],
        ),
        # The first command of an episode is the nearer one.
        (GripperHysteresis("left", 0.75, 0.25), [0.5, 0.7], [0, 0]),
        (ContinuousGripper("left"), [-0.1, 0.3, 1.2], [0, 0.3, 1]),
    ],
)
def test_a_rule_decides_step_by_step(
    rule: GripperRule, openings: list[float], expected: list[float]
) -> None:
    assert isinstance(rule, GripperRule)
    assert decided(rule, openings) == expected


def test_grippers_without_a_rule_have_that_of_their_kind() -> None:
    assert rules_by_index((), HANDS, DIMS, "here") == {
        1: GripperThreshold("left", 0.5),
        3: ContinuousGripper("right_m"),
    }
    soft = GripperHysteresis("right_m")
    assert rules_by_index((soft,), HANDS, DIMS, "here")[3] is soft
    unnamed = GripperThreshold("1", 0.7)
    assert rules_by_index((unnamed,), HANDS, (), "here")[1] is unnamed


def test_a_rule_for_what_is_no_gripper_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"data/arms, data.gripper_rules: expected names of its grippers, which are left, "
        r"right_m; found right. Did you mean right_m\? Name them as",
    ):
        rules_by_index((GripperThreshold("right"),), HANDS, DIMS, "data/arms")
    none = dataclasses.replace(HANDS, grippers=())
    with pytest.raises(UserError, match="grippers, which are none; found left"):
        rules_by_index((GripperThreshold("left"),), none, DIMS, "data/arms")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GripperThreshold("a", math.nan), "value: expected a finite number; found nan"),
        (
            lambda: GripperHysteresis("a", 0.3, 0.7),
            r"open_above: expected a finite number above close_below, 0\.7; found 0\.3",
        ),
        (
            lambda: dataclasses.replace(
                BASE, gripper_rules=(GripperThreshold("a"), ContinuousGripper("a"))
            ),
            "gripper_rules: expected one rule per gripper; found several for a",
        ),
    ],
)
def test_rules_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_rules_travel_with_the_config() -> None:
    assert "gripper_rules" not in to_json_values(BASE)
    rules = (GripperHysteresis("left", 0.8, 0.2), ContinuousGripper("right_m"))
    config = dataclasses.replace(BASE, gripper_rules=rules)
    text = json.dumps(to_json_values(config))
    assert from_json_text(DataConfig, text, where="x", remedy="y") == config
