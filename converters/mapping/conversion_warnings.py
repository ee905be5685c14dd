"""What a conversion warns of, and what no type shows: commands and times that cannot be."""

import dataclasses
import logging
import re
from collections.abc import Sequence

import numpy as np

from converters.sources.source import Source
from pipeline.data.conventions import Conventions
from pipeline.data.record import Values
from pipeline.data.schema import ACTION, EPISODES, Feature, Schema
from pipeline.errors import SchemaError

_log = logging.getLogger(__name__)

_COARSE = 1.0
"""Gap between neighbouring float32 values above which storing a float64 loses too much."""
_BINARY = 2
_HALF = 0.5


def report_cameras(source: Source, schema: Schema) -> None:
    """Logs a warning where a dataset gets no camera of a source that has some."""
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
    _commands: set[float] = dataclasses.field(default_factory=set)
    """The gripper's: the lowest, the highest and one between them are enough."""
    _equal: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    """Number of steps equal to the step before, and one such value, by source key."""

    def add(self, episode: Values) -> None:
        """Takes the next episode, as its record is decoded."""
        dim = self.conventions.gripper_dim
        if dim is not None:
            # Three values are enough to tell two commands from a continuous gripper.
            commands = {*np.unique(np.asarray(episode[ACTION])[:, dim]).tolist(), *self._commands}
            ordered = sorted(commands)
            # The two lowest and the highest.
            self._commands = {*ordered[:_BINARY], *ordered[-1:]}
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
          SchemaError: Where the gripper has two commands, and by the conventions both open it or
            both close it.
        """
        for key, (count, value) in self._equal.items():
            # The gap between neighbouring values there.
            step = np.spacing(np.float32(abs(value)))
            _log.warning(
                f"warning: {key}: {count:,} steps equal the one before at values such as "
                f"{value:.6g}, where float32 has steps of {step:g}: what was a float64 lost its "
                "differences. Subtract the first value of an episode at the source."
            )
        if self._commands:
            self._report_gripper(where)

    def _report_gripper(self, where: str) -> None:
        conventions = self.conventions
        commands = sorted(self._commands)
        span = conventions.gripper_open - conventions.gripper_close
        opened = [(command - conventions.gripper_close) / span for command in commands]
        # All commands on one side of the middle: none opens, or none closes.
        one_sided = max(opened) < _HALF or min(opened) > _HALF
        does, never = ("open", "close") if min(opened) > _HALF else ("close", "open")
        found = " and ".join(f"{command:g}" for command in (commands[0], commands[-1]))
        # Exactly two commands, both on one side: the mapping is surely wrong.
        if len(commands) == _BINARY and one_sided:
            raise SchemaError(
                where=f"{where}, gripper_dim {conventions.gripper_dim}",
                expected=f"commands around gripper_open {conventions.gripper_open:g} and "
                f"gripper_close {conventions.gripper_close:g}, as the mapping says",
                found=f"{found} alone, which would both {does} it",
                remedy="Correct gripper_open and gripper_close, or gripper_dim, in the mapping.",
            )
        # A gripper that never moves is no contradiction.
        is_constant = len(commands) == 1 and min(abs(opened[0]), abs(opened[0] - 1)) < _HALF / 10
        if one_sided and not is_constant:
            _log.warning(
                f"warning: gripper_dim {conventions.gripper_dim}: commands between {found} never "
                f"{never} it by gripper_open {conventions.gripper_open:g} and gripper_close "
                f"{conventions.gripper_close:g}"
            )
        elif len(commands) == _BINARY and (min(opened) < -_HALF or max(opened) > 1 + _HALF):
            # Two commands, such as 0 and 255, under a mapping of 0 and 1.
            _log.warning(
                f"warning: gripper_dim {conventions.gripper_dim}: its commands {found} lie far "
                f"outside gripper_open {conventions.gripper_open:g} and gripper_close "
                f"{conventions.gripper_close:g}"
            )
