"""allenai's harness itself, as a command, drives a served policy in a benchmark of the test."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

from pipeline.data.conventions import restore_gripper
from tests.train.serve.harness_client import as_observation, observation
from tests.train.serve.scripted_benchmark import NUM_STEPS, TASKS, seed_of
from tests.train.serve.served import serving
from train.policy import FirstActions
from train.serve.client_session import ServeConfig

ROOT = pathlib.Path(__file__).parents[3]
EPISODES = 5


def run_harness(port, folder):
    """Runs ten episodes; returns the harness's log."""
    benchmark = {
        "benchmark": "tests.train.serve.scripted_benchmark:ScriptedBenchmark",
        "params": {"folder": str(folder)},
        "episodes_per_task": EPISODES,
    }
    config = folder / "scripted.yaml"
    config.write_text(json.dumps({"benchmarks": [benchmark]}))
    command = pathlib.Path(sys.executable).with_name("vla-eval")
    flags = ["--no-docker", "--no-save", "--server-url", f"ws://127.0.0.1:{port}"]
    done = subprocess.run(
        [command, "run", *flags, "--config", config],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_ten_episodes_get_the_actions_of_the_policy_called_directly(served_policy, tmp_path):
    policy = served_policy
    with serving(policy, ServeConfig(protocol="vla-eval")) as port:
        log = run_harness(port, tmp_path)
    assert len(re.findall(r"SUCCESS \(steps=6\)", log)) == 10
    assert "Spec validation passed" in log
    assert "Auto-configured from model server: send_wrist_image=True" in log
    assert "WARNING" not in log
    for task, text in enumerate(TASKS):
        for episode in range(EPISODES):
            # The noise is that of the number of the episode.
            env = EPISODES * task + episode
            policy.reset(env, text)
            expected = []
            for step in range(NUM_STEPS):
                shown = as_observation(observation(seed_of(task, episode, step)))
                if step % 4:
                    policy.observe({env: shown})
                else:
                    chunk = policy.infer({env: shown})[env]
                    actions = FirstActions(4)(chunk)
                    expected.append(restore_gripper(actions, policy.conventions))
            policy.forget(env)
            found = np.load(tmp_path / f"{task}_{episode}.npy")
            np.testing.assert_array_equal(found, np.concatenate(expected)[:NUM_STEPS])
