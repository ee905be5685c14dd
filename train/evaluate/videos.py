"""A video of each trial: the pictures that the policy saw, its cameras beside each other.

MPEG-4 part 2 (`mp4v`), which OpenCV writes in a millisecond a frame where it would take VP9 40.
"""

import importlib
import pathlib
from typing import Any, Literal

import numpy as np

from pipeline.errors import UserError
from pipeline.files import temporary_path
from pipeline.libero.environment import CAMERAS, Observation
from pipeline.libero.suites import Trial

Kept = Literal["all", "failures", "none"]
"""Trials whose videos are kept."""
VIDEOS_NAME = "videos"
_CODEC = "mp4v"


class Film:
    """The video of a trial under way; a file that is there when the trial has ended, or not at all.

    Args:
      folder: Where it will be.
      trial: Which one.
      frames_per_s: Pictures a second; real time where it is how often the policy was asked.
    """

    def __init__(self, folder: pathlib.Path, trial: Trial, frames_per_s: float) -> None:
        self._folder, self._trial, self._frames_per_s = folder, trial, frames_per_s
        self._temporary: pathlib.Path | None = None
        self._writer: Any = None

    def add(self, observation: Observation) -> None:
        """Adds what the policy saw; nothing where it saw no picture.

        Raises:
          UserError: No video can be written.
        """
        images = [observation[name] for name in CAMERAS if name in observation]
        if not images:
            return
        picture = beside(images)
        self._writer = self._writer or self._open(picture.shape[1], picture.shape[0])
        self._writer.write(np.ascontiguousarray(picture[..., ::-1]))  # OpenCV's are BGR

    def keep(self, outcome: str) -> str | None:
        """Ends it; returns its name, or None where nothing was seen.

        Args:
          outcome: `success`, `failure` or `error`.
        """
        if self._writer is None or self._temporary is None:
            return None
        self._writer.release()
        name = f"{video_stem(self._trial)}-{outcome}.mp4"
        for before in self._folder.glob(f"{video_stem(self._trial)}-*.mp4"):
            before.unlink()  # of an error that this trial makes good
        self._temporary.replace(self._folder / name)
        self._writer = None
        return name

    def drop(self) -> None:
        """Ends it without a file."""
        if self._writer is not None and self._temporary is not None:
            self._writer.release()
            self._temporary.unlink(missing_ok=True)
            self._writer = None

    def _open(self, width: int, height: int) -> Any:
        cv2 = _import_opencv()
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = video_stem(self._trial)
        for left in self._folder.glob(f".{stem}.*.mp4"):
            left.unlink()  # of a process that was killed
        # OpenCV takes the container from the ending.
        self._temporary = temporary_path(self._folder / stem).with_suffix(".mp4")
        code = cv2.VideoWriter_fourcc(*_CODEC)
        size = (width, height)
        writer = cv2.VideoWriter(str(self._temporary), code, self._frames_per_s, size)
        if not writer.isOpened():
            raise UserError(
                where=str(self._temporary),
                expected=f"a video that OpenCV can write, of {_CODEC}",
                found="that it cannot",
                remedy="Check that the folder can be written, or leave videos out: --videos none",
            )
        return writer


def video_stem(trial: Trial) -> str:
    """Such as `libero_spatial-0-07`."""
    return f"{trial.task.suite}-{trial.task.index}-{trial.init:02d}"


def beside(images: list[np.ndarray]) -> np.ndarray:
    """uint8 (y, x, 3): pictures next to each other, smaller ones above black; sides even.

    An encoder that halves the colours needs even sides.
    """
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images)
    picture = np.zeros((height + height % 2, width + width % 2, 3), np.uint8)
    left = 0
    for image in images:
        picture[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1]
    return picture


def _import_opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            where="--videos",
            expected="OpenCV, which writes them",
            found=f"{error}",
            remedy="Install it: make libero. Or leave videos out: --videos none",
        ) from error
