"""A policy of no training in the real simulator: the whole command, one trial."""

import json
import pathlib

import av
import pytest

from tests.libero_sim.commands import run
from train.evaluate.libero.installation import Installation

pytestmark = [pytest.mark.libero, pytest.mark.filterwarnings("ignore")]


def test_one_trial_from_start_to_end(
    installation: Installation, untrained_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    arguments = ["train.evaluate", untrained_run, "--tasks", "0", "--trials", "1", "--out", out]
    output = run(*arguments, "--first_trial", "7", "--assets", installation.assets)
    (trial,) = json.loads((out / "results.json").read_text())["trials"]
    assert (trial["task"], trial["init"], trial["error"]) == (0, 7, None)
    assert trial["success"] or trial["steps"] == 220
    outcome = "success" if trial["success"] else "failure"
    video = out / "videos" / f"libero_spatial-0-07-{outcome}.mp4"
    assert [path.name for path in video.parent.iterdir()] == [video.name]
    check_video(video, num_frames=-(-trial["steps"] // 4))
    assert (out / "report.html").stat().st_size > 10_000
    assert f"{int(trial['success'])} of 1" in output


def check_video(path: pathlib.Path, num_frames: int) -> None:
    """A frame for each time that the policy was asked, of a camera of 128x128; it moves."""
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in video.decode(video=0)]
    assert len(frames) == num_frames
    assert frames[0].shape == (128, 128, 3)
    assert abs(frames[0] - frames[-1]).mean() > 0.5
