"""What a conversion warns of, and what no type shows: commands and times that cannot be."""

import dataclasses
import logging
import re
from collections.abc import Sequence

import numpy as np

from converters.sources.source import Source
from pipeline.data.conventions import Conventions, Gripper
from pipeline.data.record import Values
from pipeline.data.schema import ACTION, EPISODES, Feature, Schema
from pipeline.errors import SchemaError

_log = logging.getLogger(__name__)

_COARSE = 1.0
"""Gap between neighbouring float32 values above which storing a float64 loses too much."""
_BINARY = 2
_CHANNELS = 3
_HALF = 0.5


def report_cameras(source: Source, schema: Schema) -> None:
    """Logs a warning where a dataset gets no camera of a source that has some, or one of floats."""
    for column, feature in schema.features():
        # In the column of cameras alone: an array of a trajectory may hold points.
        is_rgb = feature.dtype == "float32" and feature.shape[2:] == (_CHANNELS,)
        if is_rgb and column.name != EPISODES:
            _log.warning(
                f"warning: {feature.key}: float32 {feature.shape} is no camera, whose pixels are "
                "uint8: no image tokenizer takes it. Write uint8 at the source"
            )
    if any(feature.is_camera for _, feature in schema.features()):
        return
    cameras = [key.key for key in source.keys.values() if key.kind == "image" or key.has_images]
    if cameras:
        _log.warning(f"warning: no camera is stored; the mapping ignores {', '.join(cameras)}")


def report_tasks(tasks: Sequence[str], key: str) -> None:
    """Logs a warning where the instructions of a dataset look like names of episodes or files."""
    # All of them: a single odd instruction is no sign.
    if tasks and all(is_name(task.encode()) for task in tasks):
        _log.warning(
            f"warning: {key}: the instructions look like names of episodes or files, such as "
            f'{tasks[0]!r}; task = "" leaves them out'
        )


def is_name(text: bytes) -> bool:
    """Whether a text looks like a path, a number or an identifier: one word with such letters."""
    # One word with a digit, a slash or an ending.
    return len(text.split()) == 1 and re.search(rb"[\d/\\]|\.\w+$", text) is not None


@dataclasses.dataclass
class Doubts:
    """What is looked for in a dataset, episode by episode.

    Args:
      schema: Schema of the dataset.
      conventions: Conventions of its mapping.
    """

    schema: Schema
    conventions: Conventions
    _commands: dict[Gripper, set[float]] = dataclasses.field(default_factory=dict)
    """Commands of each gripper: the lowest, the highest and one between them are enough."""
    _equal: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    """Number of steps equal to the step before, and one such value, by source key."""

    def add(self, episode: Values) -> None:
        """Takes the next episode, as its record is decoded."""
        for gripper in self.conventions.all_grippers:
            # Three values are enough to tell two commands from a continuous gripper.
            commands = np.unique(np.asarray(episode[ACTION])[:, gripper.dim]).tolist()
            ordered = sorted({*commands, *self._commands.get(gripper, ())})
            # The two lowest and the highest.
            self._commands[gripper] = {*ordered[:_BINARY], *ordered[-1:]}
        for column, feature in self.schema.features():
            if column.name == EPISODES and "float64" in {p.dtype for p in feature.origins}:
                self._add_float64(np.asarray(episode[feature.key]), feature)

    def _add_float64(self, values: np.ndarray, feature: Feature) -> None:
        """Counts steps that float32 cannot tell from the one before.

        TFRecord holds every float as a float32, so it is the source that rounded them.
        """
        start = 0
        for part in feature.origins:
            own = values.reshape(len(values), -1)[:, start : start + part.size]
            start += part.size
            # Where float32 has gaps of 1 or more, as in times in nanoseconds.
            is_coarse = np.spacing(np.abs(own[1:])) >= _COARSE
            # Equal to the step before, though the source may have differed.
            is_equal = ((own[1:] == own[:-1]) & is_coarse).any(axis=1)
            if part.dtype == "float64" and is_equal.any():
                before, _ = self._equal.get(part.source, (0, 0.0))
                sample = float(own[1:][is_coarse & (own[1:] == own[:-1])][0])
                self._equal[part.source] = (before + int(is_equal.sum()), sample)

    def report(self, where: str) -> None:
        """Logs a warning for each doubt.

        Raises:
          SchemaError: Where a binary gripper has two commands, and by the conventions both open it
            or both close it.
        """
        for key, (count, value) in self._equal.items():
            # The gap between neighbouring values there.
            step = np.spacing(np.float32(abs(value)))
            _log.warning(
                f"warning: {key}: {count:,} steps equal the one before at values such as "
                f"{value:.6g}, where float32 has steps of {step:g}: what was a float64 lost its "
                "differences. Subtract the first value of an episode at the source."
            )
        for gripper, commands in self._commands.items():
            self._report_gripper(gripper, sorted(commands), where)

    def _report_gripper(self, gripper: Gripper, commands: list[float], where: str) -> None:
        prefix = "" if self.conventions.grippers else "gripper_"
        place = f"{self.conventions.gripper_field} {gripper.dim}"
        says = f"{prefix}open {gripper.open:g} and {prefix}close {gripper.close:g}"
        span = gripper.open - gripper.close
        opened = [(command - gripper.close) / span for command in commands]
        is_binary = gripper.kind == "binary" and len(commands) == _BINARY
        # All commands on one side of the middle: none opens, or none closes.
        one_sided = max(opened) < _HALF or min(opened) > _HALF
        does, never = ("open", "close") if min(opened) > _HALF else ("close", "open")
        found = " and ".join(f"{command:g}" for command in (commands[0], commands[-1]))
        # Exactly two commands, both on one side: the mapping is surely wrong.
        if is_binary and one_sided:
            raise SchemaError(
                where=f"{where}, {place}",
                expected=f"commands around {says}, as the mapping says",
                found=f"{found} alone, which would both {does} it",
                remedy=f"Correct {prefix}open and {prefix}close, or {prefix}dim, in the mapping.",
            )
        # A gripper that never moves is no contradiction.
        is_constant = len(commands) == 1 and min(abs(opened[0]), abs(opened[0] - 1)) < _HALF / 10
        if one_sided and not is_constant:
            _log.warning(f"warning: {place}: commands between {found} never {never} it by {says}")
        elif (is_binary or gripper.kind == "continuous") and (
            min(opened) < -_HALF or max(opened) > 1 + _HALF
        ):
            # Such as 0 and 255, under a mapping of 0 and 1.
            _log.warning(f"warning: {place}: its commands {found} lie far outside {says}")
