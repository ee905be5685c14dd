"""Videos of a camera: the frames of all episodes one after another, in files of limited size."""

import fractions
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import av
import numpy as np
from av.error import FFmpegError

from pipeline.errors import UserError

Codec = Literal["av1", "h264"]
_ENCODERS: dict[str, str] = {"av1": "libsvtav1", "h264": "libx264"}
_OPTIONS = {
    "av1": {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "fast-decode=0"},
    "h264": {"g": "2", "crf": "23"},
}
"""Every second frame is a key frame, so that single frames are found fast: those of AV1 are
LeRobot's. H.264 has a quality near them, 2.8 grey levels off in the mean where AV1 is 2.6 off; with
LeRobot's 30 it would be 4.4 off (455 frames of 128x128)."""
_PIXEL_FORMAT = "yuv420p"
VIDEO_MB = 200
"""Size of a file in MiB from which on the next episode begins another."""
_MOST_DENOMINATOR = 1_000_000
# The encoder of AV1 prints its settings, and errors that PyAV raises as well.
os.environ.setdefault("SVT_LOG", "0")
_MOST_SECONDS = 1000
"""LeRobot compares times as float32, which has gaps of more than its tolerance from 1,024 s on."""


def check_encoder(codec: Codec) -> None:
    """Checks that PyAV has an encoder.

    Raises:
      UserError: It lacks it.
    """
    name = _ENCODERS[codec]
    if name not in av.codecs_available:
        others = [other for other, encoder in _ENCODERS.items() if encoder in av.codecs_available]
        instead = f", name --codec {others[0]}" if others else ""
        raise UserError(
            where=f"--codec {codec}",
            expected=f"a PyAV with the encoder {name}",
            found=f"PyAV {av.__version__} without it",
            remedy=f"Install the wheel of PyAV (`pip install av`){instead}, or name --image.",
        )


def check_taken(codec: Codec, shape: tuple[int, ...], fps: float, where: str) -> None:
    """Checks that an encoder takes images of a size at a rate, before any are written.

    Args:
      codec: Codec of the videos.
      shape: (h, w, 3) of a frame.
      fps: Frames per second.
      where: Dataset and feature, for the error.

    Raises:
      UserError: It does not: there are limits to both.
    """
    context = av.CodecContext.create(_ENCODERS[codec], "w")
    assert isinstance(context, av.VideoCodecContext)  # by the codec
    _configure(context, shape, frame_rate(fps))
    context.options = dict(_OPTIONS[codec])
    try:
        context.open()
    except FFmpegError as error:
        raise UserError(
            where=where,
            expected=f"images of a size and a rate that the encoder of {codec} takes",
            found=f"{shape[0]}x{shape[1]} at {fps:g} steps per second: {error.strerror}",
            remedy="Name another --codec, or --image.",
        ) from error


def frame_rate(fps: float) -> fractions.Fraction:
    """Returns the rate of a video as a fraction, which is what containers hold."""
    return fractions.Fraction(fps).limit_denominator(_MOST_DENOMINATOR)


def _configure(
    of: av.VideoCodecContext | av.VideoStream, shape: tuple[int, ...], rate: fractions.Fraction
) -> None:
    of.height, of.width = shape[:2]
    of.pix_fmt = _PIXEL_FORMAT
    of.time_base = 1 / rate
    of.framerate = rate


def video_info(codec: Codec, shape: tuple[int, ...], fps: float) -> dict[str, Any]:
    """Returns what `meta/info.json` says of a camera's videos.

    Args:
      codec: Codec of the videos.
      shape: (h, w, 3) of a frame.
      fps: Frames per second.
    """
    options = _OPTIONS[codec]
    preset = options.get("preset")
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.codec": codec,
        "video.pix_fmt": _PIXEL_FORMAT,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": int(options["g"]),
        "video.crf": int(options["crf"]),
        "video.preset": int(preset) if preset else None,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "is_depth_map": False,
    }


class VideoWriter:
    """The videos of one camera.

    Args:
      path_of: Returns the path of a file by its number, from 0.
      codec: Codec of the videos.
      shape: (h, w, 3) of a frame; both sizes are even.
      fps: Frames per second.
    """

    def __init__(
        self,
        path_of: Callable[[int], pathlib.Path],
        codec: Codec,
        shape: tuple[int, ...],
        fps: float,
    ) -> None:
        self._path_of = path_of
        self._codec = codec
        self._shape = shape
        self._rate = frame_rate(fps)
        self._file = -1
        self._num_frames = 0
        self._num_bytes = 0

    def begin_episode(self) -> tuple[int, float]:
        """Returns (number of the file, time of the next frame there in s) of the next episode."""
        is_full = self._num_bytes >= VIDEO_MB * 2**20 or self._seconds >= _MOST_SECONDS
        if self._file < 0 or is_full:
            self.close()
            self._file += 1
            self._open(self._path_of(self._file))
        return self._file, self._seconds

    @property
    def _seconds(self) -> float:
        return float(self._num_frames / self._rate)

    def write(self, frame: np.ndarray) -> int:
        """Adds a frame, uint8 (h, w, 3); returns the bytes written meanwhile."""
        image = av.VideoFrame.from_ndarray(frame, format="rgb24")
        image.pts = self._num_frames
        self._num_frames += 1
        return self._mux(image)

    def close(self) -> None:
        """Ends the file."""
        if self._num_frames:
            self._num_frames = 0
            self._mux(None)
            self._num_bytes = 0
            self._container.close()

    def _open(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(os.fspath(path), "w")
        stream = self._container.add_stream(
            _ENCODERS[self._codec], rate=self._rate, options=dict(_OPTIONS[self._codec])
        )
        assert isinstance(stream, av.VideoStream)  # by the codec
        _configure(stream, self._shape, self._rate)
        self._stream = stream

    def _mux(self, frame: av.VideoFrame | None) -> int:
        num_bytes = 0
        for packet in self._stream.encode(frame):
            num_bytes += packet.size
            self._container.mux(packet)
        self._num_bytes += num_bytes
        return num_bytes
