"""A scripted expert for tasks of one object that goes onto, or into, something.

Proportional control: a command moves the end effector by its distance from a waypoint, at most
0.047 m an axis. The waypoints follow the object as it is, so that whatever pushes the arm aside is
corrected; an object that slips is taken again.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from examples.scripted_expert.grasp import (
    Boxes,
    boxes_of,
    find_grasp,
    object_geoms,
    pointing_down,
    rotation_vector,
)
from pipeline.errors import UserError
from train.evaluate.libero.simulator import Simulator
from train.evaluate.libero.simulator_conventions import CLOSE, OPEN

_GAIN_M = 0.05
_GAIN_RAD = 0.5
"""What a command of 1 asks for."""
_MOST = 0.94
"""Greatest command: at 1 the controller would clip what noise adds."""

_ABOVE = np.array([0.0, 0.0, 0.10])
"""Offset in m of the point from which it descends, and to which it retreats."""
_LIFT_M = 0.12
_LOST_M = 0.04
"""An object that is this much lower in the gripper than when it was taken is not held any more."""
_CLEARANCE_M = 0.05
"""Between what is carried and what it is carried over."""
_DROP_M = 0.01
"""Above the rim of what it falls into."""
_PRESS_M = 0.008
"""Below the surface on which it is put, to have it touch."""
_CONE = 15.0
_ASIDE_M = 0.006
"""The cone within which it descends: its height over distance aside, and the distance at its tip.
Fingers come down beside the object, not on it, and go up again where they did; a can of 66 mm
leaves them 7 mm on each side."""
_TAKE_M = 0.01
"""How near a grasp is taken: less and it would wait for a distance that friction leaves."""
_PAST_M = 0.015
"""How far below the grasp it aims, so that the hand still moves when the fingers begin to close.
Where an expert slows down to nothing, a policy stops before."""
_NEAR_M = 0.02
_AT_M = 0.006

_FINGER_STEPS = 4
_STILL_M = 0.0005
"""Fingers that move less in a step, after these, hold something, or are closed or open."""
_SQUEEZE_M = 0.012
"""How far above the hand it aims while the grip gains strength, for this many steps. It rises
slowly: a policy sees no time pass while the hand waits, and would wait forever."""
_SQUEEZE_STEPS = 8
_LOWERING_STEPS = 30
_PHASE_STEPS = 60
_DELICATE = 0.3
"""Share of the noise while fingers are about to close or open."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a task asks for."""

    object: str
    """Name of what is moved."""
    target: str
    """Name of what it is put onto or into."""
    is_inside: bool
    """Whether it goes into it."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One waypoint."""

    name: str
    """Name of the phase."""
    waypoint: Callable[[], np.ndarray]
    """float64 (3): of the end effector, in m, as things stand now."""
    gripper: float
    """Command to the gripper."""
    tolerance_m: float = _AT_M
    """How near is there; infinite: the steps alone count."""
    least_steps: int = 0
    """Steps that it takes at least."""
    most_steps: int = _PHASE_STEPS
    """Steps after which it ends wherever the arm is."""
    is_holding: bool = False
    """Whether the object is held."""
    noise: float = 1.0
    """Share of the action noise that it bears."""
    arrival: Callable[[], np.ndarray] | None = None
    """float64 (3): what the end effector has to be near; None: the waypoint."""
    is_moving_fingers: bool = False
    """Whether the fingers have to stop before it ends."""


def find_goal(simulator: Simulator) -> Goal:
    """The goal of a task of one object.

    Raises:
      UserError: A task of another kind.
    """
    state = simulator.goal
    objects = simulator.objects
    if len(state) == 1 and state[0][0] in ("on", "in") and state[0][1] in objects:
        kind, name, region = state[0]
        target = region.removesuffix("_contain_region")
        if target in objects:
            return Goal(name, target, is_inside=kind == "in")
    raise UserError(
        where=str(simulator.task),
        expected="one object that goes onto or into another one",
        found=f"the goal {state}",
        remedy="The scripted expert has libero_spatial and libero_object alone: name one of them.",
    )


class Expert:
    """What an expert would do in each state of one episode.

    Args:
      simulator: It has been reset.
      rng: Generator of the waypoints' displacement.
      waypoint_noise_m: Half the side of the cube in which waypoints in free space are displaced,
        once an episode.

    Raises:
      UserError: A task of another kind.
    """

    def __init__(
        self, simulator: Simulator, rng: np.random.Generator, waypoint_noise_m: float = 0.0
    ) -> None:
        self._simulator = simulator
        self._goal = find_goal(simulator)
        self._object_geoms = object_geoms(simulator, self._goal.object)
        self._target_geoms = object_geoms(simulator, self._goal.target)
        self._grasp = find_grasp(simulator, self._goal.object)
        self._start_low = self._object.low
        self._fingers = self._opening
        # Three displaced waypoints: reach, lift and carry.
        self._phases = self._plan(rng.uniform(-waypoint_noise_m, waypoint_noise_m, (3, 3)))
        self._begin(0)

    @property
    def phase(self) -> Phase:
        """The one under way."""
        return self._phases[self._index]

    def command(self) -> np.ndarray:
        """float64 (7): the command in the present state; call it once a step."""
        self._advance()
        self._steps += 1
        self._fingers = self._opening
        # In the world's axes, as the controller takes it.
        error = self.phase.waypoint() - self._position
        turn = rotation_vector(pointing_down(self._grasp.yaw) @ self._rotation.T)
        arm = np.concatenate([error / _GAIN_M, turn / _GAIN_RAD])
        # Below 1, so that noise on top is not clipped.
        return np.append(np.clip(arm, -_MOST, _MOST), self.phase.gripper)

    def _advance(self) -> None:
        """Continues when a phase is done; to the first again where the grasp failed, or all did."""
        phase = self.phase
        arrival = phase.arrival or phase.waypoint
        distance = float(np.linalg.norm(arrival() - self._position))
        # Some phases need time as well, such as moving the fingers.
        is_there = distance < phase.tolerance_m and self._steps >= phase.least_steps
        is_there &= not phase.is_moving_fingers or abs(self._opening - self._fingers) < _STILL_M
        is_lost = phase.is_holding and self._is_lost()
        if not is_there and not is_lost and self._steps < phase.most_steps:
            return
        # After the last phase without success, too: the object may have slipped from its place.
        if is_lost or self._index == len(self._phases) - 1:
            self._grasp = find_grasp(self._simulator, self._goal.object)
            self._begin(0)
        else:
            self._begin(self._index + 1)

    def _is_lost(self) -> bool:
        """Whether the end effector has gone up from the object, which it should hold."""
        height = self._position[2] - self._simulator.position(self._goal.object)[2]
        return bool(height > self._grasp.offset[2] + _LOST_M)

    def _begin(self, index: int) -> None:
        self._index = index
        self._steps = 0
        # Where the phase began; some waypoints are relative to it.
        self._anchor = self._position

    # --- the plan

    def _plan(self, offsets: np.ndarray) -> list[Phase]:
        reach, lift, carry = offsets
        reach[2] = abs(reach[2])  # above what is to be taken, not into it
        lower = self._over_rim if self._goal.is_inside else self._on_top
        return [
            Phase("reach", lambda: self._at_grasp() + _ABOVE + reach, OPEN, _NEAR_M),
            Phase(
                "descend",
                self._down_to_grasp,
                OPEN,
                _TAKE_M,
                noise=_DELICATE,
                arrival=self._at_grasp,
            ),
            Phase(
                "close",
                self._at_grasp,
                CLOSE,
                np.inf,
                _FINGER_STEPS,
                noise=_DELICATE,
                is_moving_fingers=True,
            ),
            Phase("squeeze", self._slowly_up, CLOSE, np.inf, _SQUEEZE_STEPS, noise=_DELICATE),
            Phase("lift", lambda: self._lifted() + lift, CLOSE, 2 * _NEAR_M, is_holding=True),
            Phase("carry", lambda: self._over() + carry, CLOSE, 2 * _NEAR_M, is_holding=True),
            Phase("center", self._over, CLOSE, 2 * _AT_M, is_holding=True),
            Phase("lower", lower, CLOSE, most_steps=_LOWERING_STEPS, noise=_DELICATE),
            Phase(
                "open",
                lambda: self._anchor,
                OPEN,
                np.inf,
                _FINGER_STEPS,
                noise=_DELICATE,
                is_moving_fingers=True,
            ),
            Phase("retreat", lambda: self._anchor + _ABOVE, OPEN),
        ]

    def _at_grasp(self) -> np.ndarray:
        return self._simulator.position(self._goal.object) + self._grasp.offset

    def _down_to_grasp(self) -> np.ndarray:
        """Waypoint below the grasp, raised by more the farther the hand is beside it."""
        at = self._at_grasp()
        aside = float(np.linalg.norm((at - self._position)[:2]))
        # Within a cone: a hand that is aside rises again instead of pressing on the rim.
        return _with_height(at, at[2] + np.clip(_CONE * (aside - _ASIDE_M), -_PAST_M, _ABOVE[2]))

    def _slowly_up(self) -> np.ndarray:
        return self._position + np.array([0.0, 0.0, _SQUEEZE_M])

    def _lifted(self) -> np.ndarray:
        """Over where it was taken, at the height at which it is carried."""
        return _with_height(self._anchor, self._carrying_height())

    def _carrying_height(self) -> float:
        """Height of the end effector at which the held object clears the target and obstacles."""
        # Above the target's rim, and above obstacles where it was taken.
        low = max(self._target.high + _CLEARANCE_M, self._start_low + _LIFT_M)
        return low + self._held_height()

    def _held_height(self) -> float:
        """Height of the end effector above the lowest point of the held object."""
        return self._position[2] - self._object.low

    def _over(self) -> np.ndarray:
        """Waypoint at which the object is above the center of its target."""
        # From the object, not the hand: it may hang aside in the gripper.
        way = self._simulator.position(self._goal.target) - self._simulator.position(
            self._goal.object
        )
        return _with_height(self._position + way, self._carrying_height())

    def _on_top(self) -> np.ndarray:
        """Waypoint at which the object stands on its target."""
        surface = self._target.high_over(self._simulator.position(self._goal.target))
        # A little too low, so that the object touches before it is let go.
        return _with_height(self._over(), surface - _PRESS_M + self._held_height())

    def _over_rim(self) -> np.ndarray:
        """Waypoint from which the object falls into its target."""
        return _with_height(self._over(), self._target.high + _DROP_M + self._held_height())

    # --- what is where

    @property
    def _object(self) -> Boxes:
        return boxes_of(self._simulator, self._object_geoms)

    @property
    def _target(self) -> Boxes:
        return boxes_of(self._simulator, self._target_geoms)

    @property
    def _opening(self) -> float:
        """Position of one finger, in m; the other mirrors it."""
        return float(self._simulator.state[-2])

    @property
    def _position(self) -> np.ndarray:
        return self._simulator.end_effector[0]

    @property
    def _rotation(self) -> np.ndarray:
        return self._simulator.end_effector[1]


def _with_height(point: np.ndarray, height: float) -> np.ndarray:
    return np.array([point[0], point[1], height])
