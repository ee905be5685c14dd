"""What a trial in the simulator costs: rendering every step, every observed step, and as now.

    python -m benchmarks.evaluation_speed RUN [--suite libero_spatial] [--task 0] [--trials 3]

`every_step` steps by robosuite and renders both cameras at every step, as the evaluations of
OpenVLA and openpi do; `observed` renders only what the policy observes, as version 0.7 did; `now`
is the simulator of `octograin evaluate`. The three take turns at the same trials, in one process
and with one policy, and must end in bitwise identical states. Seconds are CPU seconds of all
threads. Building a simulator and writing videos are left out.
"""

import collections
import dataclasses
import statistics
from typing import Any

import numpy as np
import tyro

from benchmarks import measuring
from pipeline.errors import user_errors_exit
from train.evaluate.libero.environment import CAMERAS, LiberoEnv, Outcome
from train.evaluate.libero.installation import Installation, find_installation
from train.evaluate.libero.simulator import Simulator
from train.evaluate.libero.suites import Task, Trial, select_tasks
from train.policy.policy import Policy

VARIANTS = ("every_step", "observed", "now")
PARTS = ("reset", "step", "render", "policy")


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures trials of one policy in one task."""

    run: tyro.conf.Positional[str]
    """Run directory."""
    suite: str = "libero_spatial"
    """Suite of the task."""
    task: int = 0
    """Index of the task."""
    trials: int = 3
    """Number of trials."""
    first_trial: int = 0
    """Number of the first trial."""
    num_steps: int = 80
    """Steps at which a trial is ended."""
    assets: str | None = None
    """Folder of LIBERO's assets."""


class RobosuiteSimulator(Simulator):
    """Steps by robosuite's own `step`, and draws all geoms."""

    def step(self, command: np.ndarray) -> bool:
        """Executes one command (7); returns whether the goal is reached."""
        self._sensed, _, is_success, _ = self._env.step(command)
        return bool(is_success)

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """uint8 (height, width, 3): the frame of a camera."""
        self._make_current()
        with self._scene.shown():
            return self._sim.render(camera_name=camera, height=height, width=width)


class Clock:
    """CPU seconds of the parts of a trial."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = collections.defaultdict(float)

    def __call__(self, part: str, work: Any, *arguments: Any) -> Any:
        """Returns what work returns, and adds its seconds to a part."""
        result, cpu_s, _ = measuring.timed(work, *arguments)
        self.cpu_s[part] += cpu_s
        return result


def main() -> None:
    """Parses the command line and prints one JSON object per variant, then the ratios."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.evaluation_speed", use_underscores=True)
        measure(args)


def measure(args: Args) -> None:
    """Prints CPU seconds per trial and by part, and their ratios."""
    installation = find_installation(args.assets)
    (task,) = select_tasks(installation.root, args.suite, (args.task,))
    policy = Policy.from_run(args.run)
    envs = {name: make_env(installation, policy, task, name) for name in VARIANTS[1:]}
    # The first trial compiles and builds; it is not counted.
    for env in envs.values():
        run_trial(env, policy, Trial(task, args.first_trial), "observed", num_steps=2)
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(args.trials):
        trial, ends = Trial(task, args.first_trial + number), []
        # Another one begins each time.
        for name in np.roll(VARIANTS, number).tolist():
            env = envs["now" if name == "now" else "observed"]
            cpu_s, outcome = run_trial(env, policy, trial, name, args.num_steps)
            spent[name].append(dict(cpu_s, steps=outcome.num_steps))
            ends.append(env.simulator.physics_state)
        if not all(np.array_equal(end, ends[0]) for end in ends):
            raise RuntimeError(f"{trial}: the variants do not end alike")
    for name in VARIANTS:
        measuring.print_figures({"variant": name, **figures(spent[name])})
    totals = {name: [sum(one[part] for part in PARTS) for one in spent[name]] for name in VARIANTS}
    for name in VARIANTS[:2]:
        ratios = measuring.ratios(totals[name], totals["now"])
        measuring.print_figures({"cpu_s": f"{name} / now", **ratios})


def make_env(installation: Installation, policy: Policy, task: Task, name: str) -> LiberoEnv:
    """Returns an environment with a simulator of the variant."""
    env = LiberoEnv(
        installation, policy.conventions, observations=(*CAMERAS, "proprio"), image_size=(256, 256)
    )
    if name != "now":
        env._simulator = RobosuiteSimulator(installation, task)  # noqa: SLF001
    return env


def run_trial(
    env: LiberoEnv, policy: Policy, trial: Trial, name: str, num_steps: int
) -> tuple[dict[str, float], Outcome]:
    """Returns CPU seconds by part, and how the trial ended."""
    clock = Clock()
    outcome = clock("reset", env.reset, trial)
    policy.reset(trial.init, trial.task.instruction)
    seen = clock("render", env.observe)
    while not outcome.is_over and outcome.num_steps < num_steps:
        chunk = clock("policy", policy.infer, {trial.init: seen})[trial.init]
        for action in chunk:
            outcome = clock("step", env.step, action)
            if outcome.is_over or outcome.num_steps == num_steps:
                break
            if name == "every_step":
                seen = clock("render", env.observe)
        else:
            if name != "every_step":
                seen = clock("render", env.observe)
    return clock.cpu_s, outcome


def figures(trials: list[dict[str, float]]) -> dict[str, float]:
    """Medians over trials: CPU seconds of a trial, its parts, and trials per hour of one core."""
    parts = {part: statistics.median(one[part] for one in trials) for part in PARTS}
    cpu_s = statistics.median(sum(one[part] for part in PARTS) for one in trials)
    return {
        "steps": statistics.median(one["steps"] for one in trials),
        "cpu_s": round(cpu_s, 2),
        **{f"{part}_s": round(value, 2) for part, value in parts.items()},
        "trials_per_core_hour": round(3600 / cpu_s),
    }


if __name__ == "__main__":
    main()
