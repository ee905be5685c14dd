"""Depth videos: 12-bit codes to millimetres.

Source: lerobot 0.6's depth videos. depth = exp(x (ln(max + shift) - ln(min + shift)) + ln(min +
shift)) - shift in metres, for x = code / 4095; without `use_log` it is linear. Deliberate
difference: code 0 is 0, no reading. There LeRobot gives `depth_min`, which it clips missing
readings to.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

_NUM_CODES = 4096
_MM = 1000.0
_LARGEST = np.iinfo(np.uint16).max


@dataclasses.dataclass(frozen=True)
class DepthCode:
    """What the codes of a depth video mean."""

    min_m: float
    """Depth of code 0, to which LeRobot clips."""
    max_m: float
    """Depth of the last code."""
    shift_m: float
    """Added before the logarithm."""
    is_log: bool
    """Whether the steps between codes grow with the depth."""

    @functools.cached_property
    def millimetres(self) -> np.ndarray:
        """Depth in whole millimetres by code, uint16 (4096); 0 is no reading."""
        x = np.arange(_NUM_CODES) / (_NUM_CODES - 1)
        if self.is_log:
            low, high = np.log(self.min_m + self.shift_m), np.log(self.max_m + self.shift_m)
            depth = np.exp(x * (high - low) + low) - self.shift_m
        else:
            depth = self.min_m + x * (self.max_m - self.min_m)
        rounded = np.clip(np.rint(depth * _MM), 0, _LARGEST).astype(np.uint16)
        rounded[0] = 0
        return rounded


def depth_code(info: Mapping[str, Any]) -> DepthCode | None:
    """The code that a camera's declaration describes; None where it describes none."""
    names = ("video.depth_min", "video.depth_max", "video.shift")
    values = [info.get(name) for name in names]
    if not all(isinstance(value, int | float) for value in values):
        return None
    low, high, shift = (float(value) for value in values if value is not None)
    is_log = bool(info.get("video.use_log"))
    if not low < high or (is_log and low + shift <= 0):
        return None
    return DepthCode(low, high, shift, is_log)
