"""Writes a video of each trial: the images that the policy saw, its cameras side by side.

Videos are H.264, which every player and browser shows.
"""

import fractions
import importlib
import pathlib
from typing import Any, Literal

import numpy as np

from pipeline.errors import UserError
from pipeline.files import temporary_of, temporary_path, writing
from train.evaluate.libero.environment import CAMERAS, Observation
from train.evaluate.libero.suites import Trial

Kept = Literal["all", "failures", "none"]
"""Trials whose videos are kept."""
VIDEOS_NAME = "videos"
_OUTCOMES = ("success", "failure", "error")
_CODEC = "libx264"
# Fast, because simulators wait for the encoder.
_OPTIONS = {"preset": "veryfast", "crf": "20"}
_LARGEST_DENOMINATOR = 1000
"""Largest denominator of the frames per second, which a file stores as a fraction."""


class Film:
    """The video of a running trial; its file is complete or absent when the trial has ended.

    Args:
      folder: The folder of the file.
      trial: The trial.
      frames_per_s: Frames per second; the video is in real time if it is the policy's rate.
    """

    def __init__(self, folder: pathlib.Path, trial: Trial, frames_per_s: float) -> None:
        self._folder, self._trial, self._frames_per_s = folder, trial, frames_per_s
        self._recording: _Recording | None = None

    def add(self, observation: Observation) -> None:
        """Adds the policy's images at a step; nothing if it saw none.

        Raises:
          UserError: Videos cannot be written.
        """
        images = [observation[name] for name in CAMERAS if name in observation]
        if not images:
            return
        frame = beside(images)
        # Opened with the first frame, which has the size.
        if self._recording is None:
            self._recording = self._begun(width=frame.shape[1], height=frame.shape[0])
        self._recording.add(frame)

    def keep(self, outcome: str) -> str | None:
        """Finishes the file; returns its name, or None if no image was added.

        Args:
          outcome: The outcome, `success`, `failure` or `error`.

        Raises:
          UserError: The file cannot be written.
        """
        # Taken out first, so that a second call finds nothing.
        recording, self._recording = self._recording, None
        if recording is None:
            return None
        recording.finish()
        name = f"{video_stem(self._trial)}-{outcome}.mp4"
        for other in _OUTCOMES:  # a repeated trial may leave the video of its error
            (self._folder / f"{video_stem(self._trial)}-{other}.mp4").unlink(missing_ok=True)
        # Renamed at the end: a file with a final name is complete.
        recording.path.replace(self._folder / name)
        return name

    def drop(self) -> None:
        """Ends the video without a file."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.path.unlink(missing_ok=True)

    def _begun(self, width: int, height: int) -> "_Recording":
        stem = video_stem(self._trial)
        for left in self._folder.glob(f".{stem}.*.mp4"):
            if temporary_of(left.with_suffix(".tmp").name) == stem:
                left.unlink()  # left by a process that was killed
        # ".mp4" at the end, because the format is chosen by it.
        path = temporary_path(self._folder / stem).with_suffix(".mp4")
        return _Recording(path, width, height, self._frames_per_s)


class _Recording:
    """A file to add frames to; it is complete once it is finished."""

    def __init__(self, path: pathlib.Path, width: int, height: int, frames_per_s: float) -> None:
        self.path = path
        self._av = _import_av()
        rate = fractions.Fraction(frames_per_s).limit_denominator(_LARGEST_DENOMINATOR)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The index comes first, so that a browser can start before it has loaded the whole
            # file.
            self._container = self._av.open(
                str(path), "w", format="mp4", options={"movflags": "faststart"}
            )
            self._stream = self._container.add_stream(_CODEC, rate=rate, options=_OPTIONS)
            self._stream.width, self._stream.height = width, height
            # The only one that every browser shows.
            self._stream.pix_fmt = "yuv420p"
            self._container.start_encoding()

    def add(self, image: np.ndarray) -> None:
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        with writing(self.path):
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        with writing(self.path):
            # None flushes the frames that the encoder still holds.
            self._container.mux(self._stream.encode(None))
            self._container.close()


def video_stem(trial: Trial) -> str:
    """Returns a name such as `libero_spatial-0-07`."""
    return f"{trial.task.suite}-{trial.task.index}-{trial.init:02d}"


def beside(images: list[np.ndarray]) -> np.ndarray:
    """Places images side by side, uint8 (y, x, 3), smaller ones above black, with even sides.

    The encoder needs even sides, because it halves the resolution of the colours.
    """
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images)
    frame = np.zeros((height + height % 2, width + width % 2, 3), np.uint8)
    left = 0
    for image in images:
        frame[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1]
    return frame


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
