"""A policy behind a socket: a client of the protocol alone drives an episode of the simulator."""

import contextlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from converters.mapping.mapping_registry import registered
from tests.libero_sim.commands import ROOT
from tests.train.serve.openpi_client import Client
from train.evaluate.libero.environment import LiberoEnv, Outcome
from train.evaluate.libero.installation import Installation
from train.evaluate.libero.suites import Trial, read_tasks

pytestmark = [pytest.mark.libero, pytest.mark.filterwarnings("ignore")]


@contextlib.contextmanager
def served(run: pathlib.Path) -> Iterator[int]:
    """The port of `octograin serve RUN`, which ends without an error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train.serve", run, "--host", "127.0.0.1", "--port", "0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"serving .* at ws://127\.0\.0\.1:(\d+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield int(found.group(1))
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest


def drive(client: Client, env: LiberoEnv, trial: Trial) -> tuple[Outcome, int]:
    """One episode; how it ended, and how often the policy was asked."""
    outcome, num_asked = env.reset(trial), 0
    while not outcome.is_over:
        seen = env.observe()
        actions, _ = client.ask(
            **{
                "observation/image": seen["image_primary"],
                "observation/wrist_image": seen["image_wrist"],
                "observation/state": seen["proprio"],
                "prompt": trial.task.instruction,
                "reset": num_asked == 0,
            }
        )
        num_asked += 1
        for command in actions:
            assert command[6] in (-1, 1)
            outcome = env.execute(np.asarray(command, np.float64))
            if outcome.is_over:
                break
    return outcome, num_asked


def test_a_client_drives_an_episode(
    installation: Installation, untrained_run: pathlib.Path
) -> None:
    env = LiberoEnv(installation, registered("libero").conventions, image_size=(128, 128))
    trial = Trial(read_tasks(installation.root, "libero_spatial")[0], init=7)
    try:
        with served(untrained_run) as port, Client(port) as client:
            outcome, num_asked = drive(client, env, trial)
    finally:
        env.close()
    assert outcome.is_success or outcome.num_steps == trial.task.max_steps
    assert num_asked == -(-outcome.num_steps // 4)
