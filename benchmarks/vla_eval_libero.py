"""Compares what vla-eval's LIBERO benchmark shows a policy with what `octograin evaluate` shows it.

    python benchmarks/vla_eval_libero.py RUN --harness ENV/bin/vla-eval

Run it in an environment with this package and its simulator (`make libero`), and give it the
harness of another one: `pip install vla-eval torch robosuite==1.4.0` and `hf-libero==0.1.4` without
its dependencies, with a `config.yaml` of LIBERO in the folder that LIBERO_CONFIG_PATH names.

The harness drives the policy through the server. Then this project's simulator executes the same
commands from the same initial states. For every observation the first step that is not bitwise
identical is printed, with the largest difference there and of the whole episode.
"""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tyro

from pipeline.data.conventions import restore_gripper
from train.evaluate.libero.environment import LiberoEnv
from train.evaluate.libero.installation import find_installation
from train.evaluate.libero.suites import Trial, read_tasks
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
    _say(f"this project's simulator: {installation}")
    observations = tuple(policy.expected)
    env = LiberoEnv(installation, policy.conventions, observations=observations)
    task = read_tasks(installation.root, args.suite)[0]
    for episode in range(args.episodes):
        shown = policy.shown[episode]
        actions = np.concatenate(policy.chunks[episode])[: len(shown)]
        commands = restore_gripper(actions, policy.conventions)
        env.reset(Trial(task, episode))
        _say(f"{task}, initial state {episode}: {len(shown)} observations")
        ours = []
        for command in commands:
            ours.append(env.observe())
            if env.execute(command.astype(np.float64)).is_over:
                break
        for name in observations:
            _compare(name, [one[name] for one in shown], [one[name] for one in ours])
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
