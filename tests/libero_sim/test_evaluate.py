"""A policy of no training in the real simulator: the whole command, one trial."""

import json
import pathlib
import subprocess
import sys

import pytest

from pipeline.libero.installation import Installation

pytestmark = [pytest.mark.libero, pytest.mark.filterwarnings("ignore")]

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = """
import dataclasses
import importlib.util

from pipeline.config import DatasetConfig

spec = importlib.util.spec_from_file_location("tiny", "tests/data/tiny_config.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
config = tiny.UNTOKENED
data = dataclasses.replace(config.data, datasets=(DatasetConfig({dataset!r}),))
VARIANTS = {{
    "default": dataclasses.replace(
        config, data=data, num_steps=1, save_interval=1, save_dir={save_dir!r}
    )
}}
"""


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_trial_from_start_to_end(
    installation: Installation, mini_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config, save_dir, out = tmp_path / "config.py", tmp_path / "run", tmp_path / "out"
    config.write_text(SETTINGS.format(dataset=str(mini_dataset), save_dir=str(save_dir)))
    run("train.run", "--config", config)
    arguments = ["train.evaluate", save_dir, "--tasks", "0", "--trials", "1", "--out", out]
    told = run(*arguments, "--first_trial", "7", "--assets", installation.assets)
    (trial,) = json.loads((out / "results.json").read_text())["trials"]
    assert (trial["task"], trial["init"], trial["error"]) == (0, 7, None)
    assert trial["success"] or trial["steps"] == 220
    outcome = "success" if trial["success"] else "failure"
    video = out / "videos" / f"libero_spatial-0-07-{outcome}.mp4"
    assert [path.name for path in video.parent.iterdir()] == [video.name]
    check_video(video, num_frames=-(-trial["steps"] // 4))
    assert (out / "report.html").stat().st_size > 10_000
    assert f"{int(trial['success'])} of 1" in told


def check_video(path: pathlib.Path, num_frames: int) -> None:
    """A frame for each time that the policy was asked, of a camera of 128x128; it moves."""
    import cv2

    reader = cv2.VideoCapture(str(path))
    frames = []
    while True:
        is_read, frame = reader.read()
        if not is_read:
            break
        frames.append(frame.astype(float))
    assert len(frames) == num_frames
    assert frames[0].shape == (128, 128, 3)
    assert abs(frames[0] - frames[-1]).mean() > 0.5
