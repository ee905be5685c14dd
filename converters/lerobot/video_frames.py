"""The frames of a video by their times, each decoded once and in order."""

import contextlib
import os
from collections.abc import Iterator

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from etils import epath

from converters.lerobot.lerobot_features import LeRobotFeature
from pipeline.errors import DataError, SchemaError
from pipeline.files import is_remote

TOLERANCE_S = 1e-4
"""Most that a frame's time may differ from its step's, as in LeRobot's reader."""
_RATE_TOLERANCE = 0.01
"""Most that a video's own frame rate may differ from the dataset's, as a part of it."""
_CODE_BITS = 12
"""Bits of a code of depth."""
_FETCH = "The video is corrupt or its download incomplete: fetch it again."


class VideoFrames:
    """The frames of one video, read forward.

    Args:
      path: The file.
      feature: The camera that it belongs to.
      fps: Frame rate that the dataset declares.

    Raises:
      DataError: The file is missing or corrupt, or PyAV cannot decode it.
      SchemaError: Its frames have another size or rate than declared.
    """

    def __init__(self, path: epath.Path, feature: LeRobotFeature, fps: float) -> None:
        self.path = path
        self._where = str(path)
        self._fps = fps
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._current: tuple[float, av.VideoFrame] | None = None
        # One for all frames: a frame's own would be set up for each, a third of a decoding.
        self._reformatter = VideoReformatter()
        self._stack = contextlib.ExitStack()
        try:
            self._open(feature)
        except BaseException:
            self.close()
            raise

    def _open(self, feature: LeRobotFeature) -> None:
        with self._named_as_corrupt():
            remote = is_remote(self.path)
            file = self._stack.enter_context(self.path.open("rb")) if remote else None
            self._container = self._stack.enter_context(av.open(file or os.fspath(self.path), "r"))
            streams = self._container.streams.video
            if not streams:
                raise self._wrong("a video stream", "none", _FETCH)
            self._stream = streams[0]
        self._check(feature)
        # Workers share the cores already.
        self._stream.thread_count = 1

    @property
    def num_frames(self) -> int:
        """Frames that the file's header promises; 0 where it does not say."""
        return self._stream.frames

    def take(self, times: np.ndarray, episode: int) -> Iterator[av.VideoFrame]:
        """Yields the frame at each time, fastest where these follow those that were taken before.

        Args:
          times: float64 (t) in s, growing.
          episode: Number of the episode whose steps have these times, for errors.

        Raises:
          DataError: There is no frame at a time, or the file is corrupt there.
        """
        for step, time in enumerate(times.tolist()):
            self._where = f"{self.path}, episode {episode}, step {step}"
            yield self._at(time)

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame as uint8 (h, w, 3) in RGB."""
        with self._named_as_corrupt():
            return self._reformatter.reformat(frame, format="rgb24").to_ndarray()

    def codes(self, frame: av.VideoFrame) -> np.ndarray:
        """The codes of a frame of depth, uint16 (h, w) of 12 bits.

        Raises:
          DataError: Its pixels have another number of bits.
        """
        if frame.format.components[0].bits != _CODE_BITS:
            raise self._wrong(
                f"depth in codes of {_CODE_BITS} bits",
                f"the pixel format {frame.format.name}",
                "Write the set again with lerobot 0.6 or later, or ignore the key in the mapping.",
            )
        plane = frame.planes[0]
        # Lines are padded.
        codes = np.frombuffer(memoryview(plane), np.uint16)
        return codes.reshape(plane.height, plane.line_size // 2)[:, : plane.width]

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def _at(self, time: float) -> av.VideoFrame:
        if self._current is None or time < self._current[0] - TOLERANCE_S:
            self._seek(time)
        found = self._current or self._advance(time)
        while found[0] < time - TOLERANCE_S:
            found = self._advance(time)
        if found[0] > time + TOLERANCE_S:
            raise self._wrong(
                self._frame_at(time),
                f"the next one at {found[0]:.4f} s",
                "The timestamps are not those of the video: fetch the dataset again, or correct "
                "fps in meta/info.json.",
            )
        return found[1]

    def _advance(self, time: float) -> tuple[float, av.VideoFrame]:
        """The next frame with its time; `time` is what is looked for, for the error."""
        with self._named_as_corrupt():
            frame = next(self._frames, None)
        if frame is None:
            last = f"its last frame at {self._current[0]:.4f} s" if self._current else "no frame"
            raise self._wrong(self._frame_at(time), last, _FETCH)
        if frame.time is None:
            raise self._wrong("a time for each frame", "one without", _FETCH)
        self._current = frame.time, frame
        return self._current

    def _seek(self, time: float) -> None:
        """Goes to the key frame at or before a time; to the beginning, where that lies behind."""
        base = self._stream.time_base
        assert base is not None
        for place in (int((time + TOLERANCE_S) / base), 0):
            with self._named_as_corrupt():
                self._container.seek(place, stream=self._stream)
                self._frames = self._container.decode(self._stream)
            self._current = None
            if self._advance(time)[0] <= time + TOLERANCE_S:
                return

    def _frame_at(self, time: float) -> str:
        return f"a frame at {time:.4f} s, number {round(time * self._fps)} at {self._fps:g} fps"

    def _check(self, feature: LeRobotFeature) -> None:
        """Checks that a video can be decoded, and has the declared size and rate."""
        stream = self._stream
        context = stream.codec_context
        if context is None:
            raise self._wrong(
                "a video in a codec that PyAV decodes",
                "no codec that it knows: a truncated file, or another codec",
                "Fetch the video again. If it is whole, encode it again, such as in AV1 or H.264, "
                "or install a PyAV that has its codec.",
            )
        height, width = feature.key.shape[:2]
        if (context.height, context.width) != (height, width):
            raise SchemaError(
                where=str(self.path),
                expected=f"frames of {height}x{width}, as meta/info.json declares {feature.name}",
                found=f"{context.height}x{context.width}",
                remedy="Correct the shape in meta/info.json, or fetch the video again.",
            )
        rate = float(stream.average_rate or self._fps)
        if abs(rate - self._fps) > _RATE_TOLERANCE * self._fps:
            raise SchemaError(
                where=str(self.path),
                expected=f"{self._fps:g} frames per second, as fps of meta/info.json says",
                found=f"{rate:g}",
                remedy="Correct fps in meta/info.json, or fetch the video again.",
            )

    @contextlib.contextmanager
    def _named_as_corrupt(self) -> Iterator[None]:
        try:
            yield
        except (FFmpegError, OSError, UnicodeDecodeError) as error:
            self._current = None  # the next episode looks for its first frame from scratch
            is_missing = isinstance(error, FileNotFoundError)
            found = "no such file" if is_missing else getattr(error, "strerror", "") or str(error)
            raise self._wrong("a video that PyAV reads", found, _FETCH) from error

    def _wrong(self, expected: str, found: str, remedy: str) -> DataError:
        return DataError(where=self._where, expected=expected, found=found, remedy=remedy)
