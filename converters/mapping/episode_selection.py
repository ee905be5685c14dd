"""The steps and episodes of a source that a mapping keeps."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.data.schema import Blob

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")

Ranges = Mapping[str, Sequence[tuple[int, int]]]
"""Ranges of steps, from the first to before the second, by name of the episode."""


@dataclasses.dataclass(frozen=True)
class StepSelection:
    """Which steps of an episode are kept, of those that have true values.

    Operations look at all steps of the source, also at those that are not kept.
    """

    drop_first: int = 0
    """Steps that are left out at the beginning."""
    drop_last: int = 0
    """Steps that are left out at the end. An operation that looks ahead drops its own."""
    every: int = 1
    """Keeps every n-th of the others, beginning with the first."""
    resample_from_hz: float | None = None
    """Actions per second at the source. Keeps the steps nearest to the ticks of the conventions'
    `control_frequency_hz`, which is lower."""
    ranges_file: str = ""
    """JSON file of the ranges of steps that are kept, by episode: `{"name": [[0, 20], [31, 40]]}`,
    the last of a range not included. An episode that is not in it is left out."""
    ranges_id: str = ""
    """The name of an episode in the file, with keys of texts in braces, such as
    `{episode_metadata/recording_folderpath}--{episode_metadata/file_path}`."""

    def __post_init__(self) -> None:
        """Checks ranges, and that one field says how many steps there are a second."""
        if self.every < 1 or min(self.drop_first, self.drop_last) < 0:
            raise ValueError(
                f"steps.every {self.every} must be at least 1, drop_first {self.drop_first} and "
                f"drop_last {self.drop_last} at least 0"
            )
        if self.resample_from_hz is not None and self.every != 1:
            raise ValueError("steps.resample_from_hz and every: give one of them")
        if bool(self.ranges_file) != bool(self.id_keys):
            raise ValueError(
                "steps.ranges_file needs ranges_id with a key in braces, and vice versa"
            )

    @property
    def id_keys(self) -> tuple[str, ...]:
        """The keys that name an episode in the file of ranges."""
        return tuple(_PLACEHOLDER.findall(self.ranges_id))

    def name_of(self, texts: Mapping[str, str]) -> str:
        """The name of an episode in the file of ranges, of the texts of its `id_keys`."""
        return _PLACEHOLDER.sub(lambda match: texts[match[1]], self.ranges_id)

    def kept(
        self,
        num_steps: int,
        ahead: int,
        target_hz: float,
        ranges: Sequence[tuple[int, int]] | None,
    ) -> np.ndarray:
        """The steps that are kept, int64 in ascending order; none of a short episode.

        Args:
          num_steps: Steps of the episode.
          ahead: How many steps the operations look ahead.
          target_hz: The frequency that is wanted.
          ranges: Those of the episode; None: all steps.
        """
        steps = np.arange(self.drop_first, max(num_steps - max(self.drop_last, ahead), 0))
        if ranges is not None:
            inside = np.zeros(num_steps, bool)
            for start, stop in ranges:
                inside[start:stop] = True
            steps = steps[inside[steps]]
        if self.resample_from_hz is None:
            return steps[:: self.every]
        # Ticks of the target in steps of the source, each at its nearest step.
        ticks = np.arange(len(steps)) * (self.resample_from_hz / target_hz)
        places = np.floor(ticks + 0.5).astype(np.int64)
        return steps[places[places < len(steps)]]


@dataclasses.dataclass(frozen=True)
class EpisodeCondition:
    """What holds for an episode that is kept: a success flag, or a part of its name."""

    key: str
    """Key in the source, of steps or of the whole episode: a text, a number or a flag."""
    equals: bool | float | None = None
    """The value of a number or flag."""
    matches: str = ""
    """A regular expression that is found in a text, in Python's syntax."""
    at: Literal["first", "last", "any", "all"] = "last"
    """Which steps count, for a key of steps."""
    keep: bool = True
    """Whether such episodes are kept; false: left out."""

    def __post_init__(self) -> None:
        """Checks that there is one criterion, and the expression."""
        if (self.equals is None) != bool(self.matches):
            raise ValueError(f"the condition on {self.key} needs either equals or matches")
        try:
            re.compile(self.matches)
        except re.error as error:
            raise ValueError(f"matches {self.matches!r} of {self.key}: {error}") from error

    def holds(self, values: np.ndarray | Sequence[Blob]) -> bool:
        """Whether an episode is kept.

        Args:
          values: Values of the key: (t), (t, 1) or t texts.
        """
        if self.matches:
            pattern = re.compile(self.matches)
            found = [bool(pattern.search(bytes(text).decode(errors="replace"))) for text in values]
        else:
            found = (np.asarray(values).reshape(len(values), -1) == self.equals).all(1).tolist()
        match self.at:
            case "first":
                met = found[0]
            case "last":
                met = found[-1]
            case "any":
                met = any(found)
            case "all":
                met = all(found)
        return met == self.keep


def parse_ranges(text: str) -> Ranges:
    """The ranges of a JSON file.

    Raises:
      ValueError: It is not what `StepSelection.ranges_file` says; one sentence.
    """
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError("expected an object of lists by name of the episode")
    ranges = {}
    for name, pairs in parsed.items():
        is_list = isinstance(pairs, list)
        if not is_list or not all(_is_range(pair) for pair in pairs):
            raise ValueError(f"expected a list of [start, stop] for {name!r}")
        ranges[name] = [(start, stop) for start, stop in pairs]
    return ranges


def _is_range(pair: Any) -> bool:
    is_pair = isinstance(pair, list) and [type(number) for number in pair] == [int, int]
    return is_pair and 0 <= pair[0] <= pair[1]
