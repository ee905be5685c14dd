"""A scene of a cup and a tray in which an expert can be tried without the simulator.

The hand goes where it is sent, 0.4 of the way per step; a cup between closed fingers goes with it,
and falls straight down where it is let go.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from examples.scripted_expert.grasp import DOWN
from train.evaluate.libero.environment import LiberoEnv, Observation, Outcome
from train.evaluate.libero.simulator import Simulator
from train.evaluate.libero.suites import Task, Trial

TASK = Task("libero_spatial", 3, "pick_up_the_cup_and_place_it_on_the_tray")
CUP = np.array([0.02, 0.03, 0.04])
TRAY = np.array([0.06, 0.06, 0.01])
CLOSED_AFTER = 8
MAX_STEPS = 150
SLIPPERY, HOPELESS = 40, 41
"""Initial states: the cup is lost once at the first lift; it is never taken."""

_NAMES = ("world", "robot0_base", "cup", "tray", "wall")
_GEOMS = {"table": (0, 0), "hand": (1, 6), "cup": (2, 6), "tray": (3, 6), "wall": (4, 6)}
"""Body and MuJoCo's number of the kind, by name."""


class ToySimulator(Simulator):
    """What a simulator offers to an expert."""

    objects: Any = ("cup", "tray")
    goal: Any = None
    model: Any = None

    def __init__(self, init: int = 0, goal: tuple[str, ...] = ("on", "cup", "tray")) -> None:
        self.task = TASK
        self.goal = [list(goal)]
        self.init = init
        self.hand = np.array([-0.1, 0.0, 0.3])
        self.places = {
            "cup": np.array([0.1 + 0.001 * init, -0.1, CUP[2]]),
            "tray": np.array([0.1, 0.15, TRAY[2]]),
            "wall": np.array([0.1, -0.5, 0.1]),
        }
        self.closing = 0
        self.is_held = False
        self.slips = 1 if init == SLIPPERY else 1000 if init == HOPELESS else 0
        bodies = [body for body, _ in _GEOMS.values()]
        halves = [np.full(3, 1.0), np.full(3, 0.01), CUP, TRAY, np.array([0.2, 0.01, 0.1])]
        self.model = SimpleNamespace(
            geom_contype=np.ones(5, int),
            geom_conaffinity=np.zeros(5, int),
            geom_type=np.array([kind for _, kind in _GEOMS.values()]),
            geom_bodyid=np.array(bodies),
            body_parentid=np.zeros(5, int),
            body_rootid=np.arange(5),
            geom_aabb=np.array([[0, 0, 0, *half] for half in halves]),
            body=lambda number: SimpleNamespace(name=_NAMES[number]),
        )

    @property
    def data(self) -> Any:
        spots = [np.zeros(3), self.hand, *(self.places[n] for n in ("cup", "tray", "wall"))]
        return SimpleNamespace(
            geom_xpos=np.array(spots), geom_xmat=np.tile(np.eye(3).ravel(), (5, 1))
        )

    @property
    def end_effector(self) -> tuple[np.ndarray, np.ndarray]:
        return self.hand.copy(), DOWN.copy()

    @property
    def state(self) -> np.ndarray:
        """Fingers close by 5 mm per step, until they touch the cup."""
        finger = 0.04 - 0.005 * min(self.closing, CLOSED_AFTER)
        return np.array([*self.hand, 0.0, 0.0, 0.0, finger, -finger], np.float32)

    @property
    def physics_state(self) -> np.ndarray:
        return np.concatenate([self.hand, *self.places.values()])

    def body_id(self, name: str) -> int:
        return _NAMES.index(name)

    def position(self, name: str) -> np.ndarray:
        return self.places[name].copy()

    def step(self, command: np.ndarray) -> bool:
        """Moves; returns whether the cup stands on the tray."""
        way = 0.4 * 0.05 * command[:3]
        self.hand = self.hand + way
        self.closing = self.closing + 1 if command[6] > 0 else 0
        cup = self.places["cup"]
        if self.closing == CLOSED_AFTER and np.abs(self.hand - cup).max() < 0.03:
            self.is_held = True
        if self.closing == 0:
            self.is_held = False
        if self.is_held and self.slips and cup[2] > 0.07:
            self.slips -= 1
            self.is_held = False
        if self.is_held:
            self.places["cup"] = cup + way
        is_over_tray = np.abs(cup - self.places["tray"])[:2].max() < 0.03
        if not self.is_held:
            self.places["cup"] = np.array([*cup[:2], CUP[2] + (2 * TRAY[2] if is_over_tray else 0)])
        return bool(is_over_tray and not self.is_held)


class ToyEnv(LiberoEnv):
    """What an environment offers to the maker of episodes."""

    simulator: Any = None

    def __init__(self) -> None:
        self.num_resets = 0

    def reset(self, trial: Trial) -> Outcome:
        self.num_resets += 1
        self.simulator = ToySimulator(trial.init)
        self.outcome = Outcome(0, is_success=False, is_over=False)
        return self.outcome

    def execute(self, command: np.ndarray) -> Outcome:
        is_success = self.simulator.step(command)
        num_steps = self.outcome.num_steps + 1
        is_over = is_success or num_steps == MAX_STEPS
        self.outcome = Outcome(num_steps, is_success=is_success, is_over=is_over)
        return self.outcome

    def observe(self) -> Observation:
        image = np.full((16, 16, 3), self.outcome.num_steps, np.uint8)
        state = np.append(self.simulator.hand, np.zeros(5)).astype(np.float32)
        return {
            "image_primary": image,
            "image_wrist": image,
            "proprio": state,
            "joint_state": state[:7],
        }
