"""A video of each trial: the pictures that the policy saw, its cameras beside each other.

H.264, which every player and browser shows.
"""

import fractions
import importlib
import pathlib
from typing import Any, Literal

import numpy as np

from pipeline.errors import UserError
from pipeline.files import temporary_of, temporary_path, writing
from pipeline.libero.environment import CAMERAS, Observation
from pipeline.libero.suites import Trial

Kept = Literal["all", "failures", "none"]
"""Trials whose videos are kept."""
VIDEOS_NAME = "videos"
_OUTCOMES = ("success", "failure", "error")
_CODEC = "libx264"
_OPTIONS = {"preset": "veryfast", "crf": "20"}
_LARGEST_DENOMINATOR = 1000
"""Of the frames a second, which a file holds as a fraction."""


class Film:
    """The video of a trial under way; a file that is there when the trial has ended, or not at all.

    Args:
      folder: Where it will be.
      trial: Which one.
      frames_per_s: Pictures a second; real time where it is how often the policy was asked.
    """

    def __init__(self, folder: pathlib.Path, trial: Trial, frames_per_s: float) -> None:
        self._folder, self._trial, self._frames_per_s = folder, trial, frames_per_s
        self._recording: _Recording | None = None

    def add(self, observation: Observation) -> None:
        """Adds what the policy saw; nothing where it saw no picture.

        Raises:
          UserError: No video can be written.
        """
        images = [observation[name] for name in CAMERAS if name in observation]
        if not images:
            return
        picture = beside(images)
        if self._recording is None:
            self._recording = self._begun(width=picture.shape[1], height=picture.shape[0])
        self._recording.add(picture)

    def keep(self, outcome: str) -> str | None:
        """Ends it; returns its name, or None where nothing was seen.

        Args:
          outcome: `success`, `failure` or `error`.

        Raises:
          UserError: It cannot be written.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            return None
        recording.finish()
        name = f"{video_stem(self._trial)}-{outcome}.mp4"
        for other in _OUTCOMES:  # of an error that this trial makes good
            (self._folder / f"{video_stem(self._trial)}-{other}.mp4").unlink(missing_ok=True)
        recording.path.replace(self._folder / name)
        return name

    def drop(self) -> None:
        """Ends it without a file."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.path.unlink(missing_ok=True)

    def _begun(self, width: int, height: int) -> "_Recording":
        stem = video_stem(self._trial)
        for left in self._folder.glob(f".{stem}.*.mp4"):
            if temporary_of(left.with_suffix(".tmp").name) == stem:
                left.unlink()  # of a process that was killed
        path = temporary_path(self._folder / stem).with_suffix(".mp4")
        return _Recording(path, width, height, self._frames_per_s)


class _Recording:
    """A file that frames are added to; whole when it is finished."""

    def __init__(self, path: pathlib.Path, width: int, height: int, frames_per_s: float) -> None:
        self.path = path
        self._av = _import_av()
        rate = fractions.Fraction(frames_per_s).limit_denominator(_LARGEST_DENOMINATOR)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The index comes first, so that a browser starts before it has all of it.
            self._container = self._av.open(
                str(path), "w", format="mp4", options={"movflags": "faststart"}
            )
            self._stream = self._container.add_stream(_CODEC, rate=rate, options=_OPTIONS)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._container.start_encoding()

    def add(self, picture: np.ndarray) -> None:
        frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        with writing(self.path):
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        with writing(self.path):
            self._container.mux(self._stream.encode(None))
            self._container.close()


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


def _import_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise UserError(
            where="--videos",
            expected="PyAV, which writes them",
            found=f"{error}",
            remedy="Install it: make libero. Or leave videos out: --videos none",
        ) from error
