"""The simulator for a policy: trials, and observations and actions in a dataset's conventions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.errors import UserError
from train.evaluate.libero.installation import Installation
from train.evaluate.libero.scene.perturbations import NONE, Perturbations
from train.evaluate.libero.scene.perturbed_scene import THIRD_PERSON_CAMERA
from train.evaluate.libero.simulator import Simulator
from train.evaluate.libero.simulator_conventions import (
    check_conventions,
    frame_to_image,
    target_to_action,
    to_command,
)
from train.evaluate.libero.suites import Trial

CAMERAS = {"image_primary": THIRD_PERSON_CAMERA, "image_wrist": "robot0_eye_in_hand"}
"""The simulator's camera for each image observation of a batch."""
OBSERVATIONS = (*CAMERAS, "proprio", "joint_state")
"""Names of the available observations."""

Observation = dict[str, np.ndarray]
"""Arrays by name below `observation/`: images uint8 (h, w, 3) in the dataset's orientation,
`proprio` float32 (8) and `joint_state` float32 (7), not normalised."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state of a trial."""

    num_steps: int
    """Actions executed since the reset, without the settling steps."""
    is_success: bool
    """Whether the goal was reached at any of them."""
    is_over: bool
    """Whether it was, or the suite's limit is."""


class LiberoEnv:
    """The benchmark's trials, one at a time, in this process.

    The simulator is built at the first reset, and again where a trial has another task.

    Args:
      installation: The simulator on this machine.
      conventions: Conventions of the dataset or checkpoint, which the policy's values follow.
      observations: Names among `OBSERVATIONS`.
      image_size: Height and width of the images, as the dataset stores them.
      seed: Seed of what a reset draws.
      perturbations: Perturbations of every trial.

    Raises:
      UserError: Conventions that the simulator cannot honour, or an observation that it has not.
    """

    def __init__(
        self,
        installation: Installation,
        conventions: Conventions,
        *,
        observations: Sequence[str] = ("image_primary", "image_wrist", "proprio"),
        image_size: tuple[int, int] = (256, 256),
        seed: int = 0,
        perturbations: Perturbations = NONE,
    ) -> None:
        check_conventions(conventions, "the simulator")
        strange = [name for name in observations if name not in OBSERVATIONS]
        if strange:
            raise UserError(
                where="the simulator, observations",
                expected=f"some of {', '.join(OBSERVATIONS)}",
                found=", ".join(strange),
                remedy="Evaluate a policy that reads these alone.",
            )
        self._installation = installation
        self._conventions = conventions
        self._observations = tuple(observations)
        self._image_size = image_size
        self._seed = seed
        self._perturbations = perturbations
        self._simulator: Simulator | None = None
        self._trial: Trial | None = None
        self._outcome = Outcome(0, is_success=False, is_over=False)

    def reset(self, trial: Trial) -> Outcome:
        """Starts a trial; it has settled.

        Raises:
          UserError: No such initial state, or assets that the task lacks.
        """
        # Building takes 5 to 25 s, so trials of one task share a simulator.
        if self._simulator is None or self._simulator.task != trial.task:
            # The old one first: two would need twice the memory.
            self.close()
            self._simulator = Simulator(self._installation, trial.task, self._seed)
        self._simulator.reset(trial.init, self._perturbations)
        self._trial = trial
        self._outcome = Outcome(0, is_success=False, is_over=False)
        return self._outcome

    def step(self, action: np.ndarray) -> Outcome:
        """Executes an action, in the dataset's units with 1 = open, for 1/20 s.

        Args:
          action: (7), or with `target_poses` (a), a pose that becomes a change of the current one.

        Raises:
          UserError: An action that is not finite or has another width.
          RuntimeError: Where the trial is over.
        """
        rotation = self._conventions.rotation
        if self._conventions.target_poses and rotation != "none":
            action = target_to_action(action, self.simulator.state, rotation)
        return self.execute(to_command(action))

    def execute(self, command: np.ndarray) -> Outcome:
        """Executes a command (7) of the simulator.

        Raises:
          RuntimeError: Where the trial is over.
        """
        if self._trial is None or self._outcome.is_over:
            raise RuntimeError("no trial is under way: reset")
        is_success = self.simulator.step(command)
        num_steps = self._outcome.num_steps + 1
        is_over = is_success or num_steps >= self._trial.task.max_steps
        self._outcome = Outcome(num_steps, is_success=is_success, is_over=is_over)
        return self._outcome

    def observe(self) -> Observation:
        """Returns the current observation; each call renders its cameras."""
        return {name: self._observe(name) for name in self._observations}

    @property
    def simulator(self) -> Simulator:
        """The one of the task under way.

        Raises:
          RuntimeError: Before the first reset.
        """
        if self._simulator is None:
            raise RuntimeError("no trial was begun: reset")
        return self._simulator

    def close(self) -> None:
        """Frees the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _observe(self, name: str) -> np.ndarray:
        match name:
            case "proprio":
                return self.simulator.state
            case "joint_state":
                return self.simulator.joint_state
            case _:
                # Rendered at each call: 0.05 to 0.1 CPU-seconds for a camera.
                frame = self.simulator.render(CAMERAS[name], *self._image_size)
                return frame_to_image(frame, self._conventions)
