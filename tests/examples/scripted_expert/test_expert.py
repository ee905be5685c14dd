import itertools

import numpy as np
import pytest

from examples.scripted_expert.expert import Expert, Goal, find_goal
from pipeline.errors import UserError
from tests.examples.scripted_expert.toy import MAX_STEPS, SLIPPERY, ToySimulator


def phases_of(toy: ToySimulator, waypoint_noise_m: float = 0.0) -> list[str]:
    """Lets the expert work until it succeeds; the phases that it went through."""
    expert = Expert(toy, np.random.default_rng(0), waypoint_noise_m)
    seen = []
    for _ in range(MAX_STEPS):
        command = expert.command()
        assert command.shape == (7,)
        assert np.abs(command[:6]).max() <= 0.94
        assert command[6] in (-1.0, 1.0)
        seen.append(expert.phase.name)
        if toy.step(command):
            return [name for name, _ in itertools.groupby(seen)]
    raise AssertionError(f"no success: {seen}")


PHASES = ["reach", "descend", "close", "squeeze", "lift", "carry", "center", "lower", "open"]


def test_the_cup_is_carried_onto_the_tray() -> None:
    toy = ToySimulator()
    assert phases_of(toy) == PHASES
    assert np.abs(toy.position("cup") - toy.position("tray"))[:2].max() < 0.01


def test_displaced_waypoints_lead_there_too() -> None:
    assert phases_of(ToySimulator(7), 0.05) == PHASES


def test_a_hand_that_is_aside_of_the_grasp_goes_up_first() -> None:
    toy = ToySimulator()
    expert = Expert(toy, np.random.default_rng(0))
    while expert.phase.name == "reach":
        toy.step(expert.command())
    toy.hand = expert.phase.waypoint()  # above the grasp
    grasp = expert.phase.waypoint() + np.array([0.0, 0.0, 0.015])  # it aims below
    toy.hand = grasp + np.array([0.03, 0.0, 0.0])
    assert expert.command()[:3] == pytest.approx([-0.6, 0.0, 0.94])  # up by 0.1 m, clipped
    toy.hand = grasp + np.array([0.008, 0.0, 0.02])
    assert expert.command()[:3] == pytest.approx([-0.16, 0.0, 0.2])  # to 15 times 2 mm above it
    toy.hand = grasp + np.array([0.002, 0.0, 0.02])
    assert expert.command()[:3] == pytest.approx([-0.04, 0.0, -0.7])
    assert expert.phase.name == "descend"


def test_the_hand_moves_in_every_step_of_a_grasp_but_those_in_which_fingers_do() -> None:
    toy = ToySimulator()
    expert = Expert(toy, np.random.default_rng(0))
    moved: dict[str, list[float]] = {}
    while expert.phase.name != "lift":
        command = expert.command()
        before = np.append(toy.hand, toy.state[-2])
        toy.step(command)
        change = np.abs(np.append(toy.hand, toy.state[-2]) - before).max()
        moved.setdefault(expert.phase.name, []).append(float(change))
    # A policy sees no time pass: it would wait forever where nothing changes.
    assert min(moved["descend"]) > 0.003
    assert min(moved["squeeze"]) > 0.002
    assert sum(change < 0.002 for change in moved["close"]) <= 1


def test_a_cup_that_slips_is_taken_again() -> None:
    found = phases_of(ToySimulator(SLIPPERY))
    assert found == [*PHASES[:5], *PHASES]


def test_what_falls_into_a_basket_is_let_go_above_its_rim() -> None:
    toy = ToySimulator(goal=("in", "cup", "tray_contain_region"))
    lows = []
    expert = Expert(toy, np.random.default_rng(0))
    for _ in range(MAX_STEPS):
        command = expert.command()
        if expert.phase.name == "open" and toy.is_held:
            lows.append(toy.position("cup")[2] - 0.04)
        if toy.step(command):
            break
    assert 0.02 < lows[0] < 0.04  # the tray is 0.02 high


def test_the_goal_is_that_of_the_scene() -> None:
    assert find_goal(ToySimulator()) == Goal("cup", "tray", is_inside=False)
    basket = ToySimulator(goal=("in", "cup", "tray_contain_region"))
    assert find_goal(basket) == Goal("cup", "tray", is_inside=True)


@pytest.mark.parametrize(
    "goal", [("open", "drawer"), ("on", "cup", "cabinet_top"), ("turnon", "cup")]
)
def test_a_task_of_another_kind_is_refused(goal: tuple[str, ...]) -> None:
    with pytest.raises(
        UserError, match=r"libero_spatial task 3: expected one object that goes onto"
    ):
        find_goal(ToySimulator(goal=goal))
