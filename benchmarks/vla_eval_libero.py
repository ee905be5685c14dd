"""Compares what vla-eval's LIBERO benchmark shows a policy with what `octograin evaluate` shows it.

    python benchmarks/vla_eval_libero.py RUN --harness ENV/bin/vla-eval

Run it in an environment with this package and its simulator (`make libero`), and give it the
harness of another one: `pip install vla-eval torch robosuite==1.4.0` and `hf-libero==0.1.4` without
its dependencies, with a `config.yaml` of LIBERO in the folder that LIBERO_CONFIG_PATH names.

The harness drives the policy through the server. Then the same commands are executed from the same
initial states, once by this project's simulator, and once in this environment as published scripts
do: they take the images that robosuite's cameras give with each step, build the scene again at each
reset, and seed once. For every observation the first step that is not bitwise identical is printed,
with the largest difference there and of the whole episode.
"""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tyro

from pipeline.data.conventions import restore_gripper
from train.evaluate.libero.environment import CAMERAS, LiberoEnv
from train.evaluate.libero.installation import (
    Installation,
    find_installation,
    import_simulator,
)
from train.evaluate.libero.simulator import SETTLING_STEPS
from train.evaluate.libero.simulator_conventions import OPEN, frame_to_image
from train.evaluate.libero.suites import Task, Trial, read_tasks
from train.policy.policy import Policy
from train.serve.client_session import ServeConfig
from train.serve.in_thread import serving


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares the harness's LIBERO benchmark with this project's simulator."""

    run: tyro.conf.Positional[str]
    """Run directory of a policy of LIBERO data."""
    harness: str
    """Command of the harness, such as ENV/bin/vla-eval."""
    suite: str = "libero_spatial"
    """Suite, whose first task is run."""
    episodes: int = 2
    """Trials, from the first initial state on."""
    max_steps: int | None = None
    """Limit of an episode; None: the suite's."""


class Recorded(Policy):
    """A policy that keeps what it is shown and predicts, by episode."""

    def __init__(self, *args: Any) -> None:
        self.shown: dict[int, list[dict[str, np.ndarray]]] = {}
        self.chunks: dict[int, list[np.ndarray]] = {}
        super().__init__(*args)

    def observe(self, observations: Mapping[int, Any]) -> None:
        """Keeps the observation."""
        for env, one in observations.items():
            self.shown.setdefault(env, []).append({k: np.array(v) for k, v in one.items()})
        super().observe(observations)

    def infer(self, observations: Mapping[int, Any], previous: Any = None) -> dict[int, np.ndarray]:
        """Keeps the observation and the chunk."""
        for env, one in observations.items():
            self.shown.setdefault(env, []).append({k: np.array(v) for k, v in one.items()})
        chunks = super().infer(observations, previous)
        for env, chunk in chunks.items():
            self.chunks.setdefault(env, []).append(chunk)
        return chunks


def main(args: Args) -> None:
    """Runs the harness, then this project's simulator, and prints the comparison."""
    policy = Recorded.from_run(args.run)
    assert isinstance(policy, Recorded)
    with serving(policy, ServeConfig(protocol="vla-eval")) as port:
        _run_harness(args, f"ws://127.0.0.1:{port}")
    installation = find_installation()
    task = read_tasks(installation.root, args.suite)[0]
    commands = []
    for episode in range(args.episodes):
        actions = np.concatenate(policy.chunks[episode])[: len(policy.shown[episode])]
        restored = restore_gripper(actions, policy.conventions)
        commands.append([*restored.astype(np.float64)])
    _say(f"{task}; here: {installation}")
    for name, run in (("this project", _run_here), ("as published", _run_as_published)):
        for episode, ours in enumerate(run(policy, installation, task, commands)):
            _say(f"{name}, initial state {episode}")
            for key in ours[0]:
                theirs = [one[key] for one in policy.shown[episode]]
                _compare(key, theirs, [one[key] for one in ours])


def _run_here(
    policy: Policy, installation: Installation, task: Task, commands: list[list[np.ndarray]]
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yields the observations of each episode in this project's simulator."""
    env = LiberoEnv(installation, policy.conventions, observations=tuple(policy.expected))
    for episode, of_episode in enumerate(commands):
        env.reset(Trial(task, episode))
        seen = []
        for command in of_episode:
            seen.append(env.observe())
            if env.execute(command).is_over:
                break
        yield seen
    env.close()


def _run_as_published(
    policy: Policy, installation: Installation, task: Task, commands: list[list[np.ndarray]]
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yields the images of each episode as the evaluations of OpenVLA and openpi take them."""
    height, width = policy.spec.features["observation/image_primary"].shape[:2]
    make = import_simulator(installation)
    scene = str(task.scene_path(installation.root))
    env = make(scene, camera_heights=height, camera_widths=width)
    env.seed(0)
    for episode, of_episode in enumerate(commands):
        env.reset()
        sensed = env.set_init_state(task.init_states(installation.root)[episode])
        for _ in range(SETTLING_STEPS):
            sensed = env.step([0.0] * 6 + [OPEN])[0]
        seen = []
        for command in of_episode:
            frames = {name: sensed[f"{CAMERAS[name]}_image"] for name in CAMERAS}
            seen.append({k: frame_to_image(v, policy.conventions) for k, v in frames.items()})
            sensed = env.step(command)[0]
        yield seen
    env.close()


def _run_harness(args: Args, url: str) -> None:
    benchmark = {
        "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
        "params": {"suite": args.suite, "seed": 7},
        "max_tasks": 1,
        "episodes_per_task": args.episodes,
        "max_steps": args.max_steps,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "libero.yaml"
        # JSON is YAML. The time limit is for machines where others run too.
        config.write_text(json.dumps({"server": {"timeout": 300}, "benchmarks": [benchmark]}))
        flags = ["run", "--no-docker", "--render", "cpu", "--no-save", "--server-url", url]
        command = [*shlex.split(args.harness), *flags, "--config", str(config)]
        subprocess.run(command, check=True, cwd=folder)


def _compare(name: str, theirs: list[np.ndarray], ours: list[np.ndarray]) -> None:
    """Prints the first step at which an observation differs, and by how much."""
    # As the policy reads them: states become float32.
    pairs = [(t.astype(o.dtype), o) for t, o in zip(theirs, ours, strict=False)]
    gaps = [float(np.abs(t.astype(np.float64) - o).max()) for t, o in pairs]
    differ = [step for step, (t, o) in enumerate(pairs) if not np.array_equal(t, o)]
    if not differ:
        _say(f"  {name}: bitwise identical at {len(pairs)} steps")
        return
    first = differ[0]
    share = np.mean(pairs[first][0] != pairs[first][1])
    _say(
        f"  {name}: differs from step {first} on, by up to {gaps[first]:.3g} in {share:.1%} of its "
        f"values there; up to {max(gaps):.3g} in {len(pairs)} steps"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
