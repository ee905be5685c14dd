import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import Manifest
from pipeline.data.schema import SOURCE_ID
from pipeline.errors import DataError
from train.evaluate.libero.installation import Installation

pytestmark = [pytest.mark.libero, pytest.mark.filterwarnings("ignore")]

ROOT = pathlib.Path(__file__).parents[2]


def command(installation: Installation, *arguments: object) -> list[str]:
    assets = ["--assets", str(installation.assets)]
    return [sys.executable, "-m", "examples.scripted_expert", *map(str, arguments), *assets]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(a) for a in arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def kill_after_the_first_episode(arguments: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """Starts a job, kills it and its processes, and returns the episodes that lie there."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("*.tfrecord")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return sorted(folder.glob("*.tfrecord"))


def test_a_killed_job_continues_and_writes_successful_episodes(
    installation: Installation, tmp_path: pathlib.Path
) -> None:
    out, rlds = tmp_path / "demos", tmp_path / "rlds"
    arguments = command(
        installation,
        out,
        *("--suite", "libero_spatial,libero_object", "--tasks", 0, "--episodes", 1),
        *("--first_init", 7, "--noise", 0.1, "--waypoint_noise", 0.02, "--image_size", 64),
        *("--rlds", rlds),
    )
    kept = kill_after_the_first_episode(arguments, tmp_path / ".demos.episodes")
    with pytest.raises(DataError):
        open_dataset(str(out))
    times = {path.name: path.stat().st_mtime_ns for path in kept}
    assert list(times) == ["libero_spatial-0-7.tfrecord"]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "failed: none" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos", "rlds"]
    check_dataset(out)
    verified = run(sys.executable, "-m", "converters.verify", rlds, out)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = run(*arguments)
    assert again.returncode == 2
    assert "one that is in use. Replace a dataset with --overwrite" in again.stderr


def check_dataset(out: pathlib.Path) -> None:
    dataset = open_dataset(str(out))
    manifest: Manifest = dataset.manifest
    assert manifest.name == "libero_expert"
    assert manifest.tasks == (
        "pick up the black bowl between the plate and the ramekin and place it on the plate",
        "pick up the alphabet soup and place it in the basket",
    )
    assert manifest.conventions.image_orientation == "rotated_180"
    assert (manifest.conventions.gripper_open, manifest.conventions.gripper_close) == (-1, 1)
    assert manifest.provenance["initial_states"] == (
        "libero_spatial task 0: 7; libero_object task 0: 7"
    )
    assert "commands 0.1, waypoints 0.02 m" in manifest.provenance["noise"]
    for index, suite in enumerate(("libero_spatial", "libero_object")):
        episode = dataset.columns["episodes"].read(index)
        source = bytes(episode[SOURCE_ID]).decode()
        assert source.startswith(f"scripted_expert/{suite}/task_0/init_07/seed_0/attempt_")
        actions = np.asarray(episode["action"])
        assert set(actions[:, 6].tolist()) == {-1.0, 1.0}
        assert np.abs(actions[:, :6]).max() < 0.95
        assert np.asarray(episode["reward"]).tolist() == [0.0] * (len(actions) - 1) + [1.0]
        assert np.flatnonzero(episode["is_first"]).tolist() == [0]
    features = json.loads((out / "dataset.json").read_text())["schema"]["columns"][1]["features"]
    assert [feature["shape"] for feature in features] == [[64, 64, 3]] * 2


def test_a_task_of_another_kind_is_refused(
    installation: Installation, tmp_path: pathlib.Path
) -> None:
    result = run(
        *command(installation, tmp_path / "out", "--suite", "libero_spatial", "--episodes", "51")
    )
    assert result.returncode == 2
    assert "initial states of libero_spatial task 0, from 0 to 49; found 0 to 50" in result.stderr
