"""Config of one dataset of a mixture: where it is, and which of its steps are sampled how often."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import tyro

from pipeline.added_fields import LATER
from pipeline.config_checks import Problem, check
from pipeline.terminal import count, ranges

Outcome = Literal["any", "success", "failure"]
T = TypeVar("T")
_MOST = 2**63 - 1
"""Larger numbers of episodes and steps fit into no array."""


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of the mixture, or a part of it.

    A step is sampled if every field that chooses keeps it.
    """

    path: str
    """Dataset directory, the one that holds dataset.json; or hf://datasets/owner/name[@revision],
    whose columns that the run reads are fetched before it starts."""
    weight: float | None = None
    """Share of the samples, relative to the other weights. If None for all datasets, shares are
    proportional to their selected steps."""
    tasks: tuple[str, ...] = ()
    """Globs over instructions; only steps whose instruction matches are sampled. Empty: all."""
    episodes: tuple[int, int] | None = None
    """First episode to sample and the one after the last, counted from 0; None: all."""
    missing: tuple[str, ...] = ()
    """Observations that this dataset lacks: its samples have zeros, and False in the pad mask."""
    excluded: tuple[str, ...] = ()
    """Corrupt records to skip, each FILE:RECORD as printed in the error. Samples that would read
    one are replaced; the order of all other samples does not change."""
    commands: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Shell commands that create the directory; printed if it is missing."""
    episode_list: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    """Episodes to sample, counted from 0, such as `(*range(10), 15)`; by flags `0 1 15`. Empty:
    all."""
    trim: tuple[int, int] = dataclasses.field(default=(0, 0), metadata=LATER)
    """Steps at the start and at the end of each episode that are left out, as if they had not been
    recorded: windows, chunks and goals do not reach them, and are padded as at an episode's end.
    An episode without other steps is not sampled."""
    segments: tuple[tuple[int, int, int], ...] = dataclasses.field(default=(), metadata=LATER)
    """Parts of episodes to sample, such as annotated ones: each an episode, its first step and the
    one after the last; by flags `3 10 50 7 0 20`. Like `trim`, the rest counts as not recorded, so
    each is an episode of its own. Empty: whole episodes."""
    outcome: Outcome = dataclasses.field(default="any", metadata=LATER)
    """Samples only episodes that succeeded, or only those that failed (docs/format.md, Success)."""
    failure_weight: float = dataclasses.field(default=1.0, metadata=LATER)
    """How often each step of an episode that failed is sampled, relative to one that succeeded."""
    task_weights: tuple[tuple[str, float], ...] = dataclasses.field(default=(), metadata=LATER)
    """Globs over instructions, each with how often every step of it is sampled, relative to those
    that match none; by flags `"open*" 2 "*drawer*" 0.5`. The first that matches counts."""

    def __post_init__(self) -> None:
        """Checks ranges and weights."""
        check(self)

    @property
    def uses_success(self) -> bool:
        """Whether it has to be known which episodes succeeded."""
        return self.outcome != "any" or self.failure_weight != 1

    @property
    def has_parts(self) -> bool:
        """Whether parts of episodes are left out as if they had not been recorded."""
        return bool(self.segments) or self.trim != (0, 0)

    def whole(self) -> "DatasetConfig":
        """Returns the config of the same dataset, of which every step that can be read counts."""
        return DatasetConfig(self.path, missing=self.missing, excluded=self.excluded)

    def choice(self) -> str:
        """Returns what is chosen, in words; empty if everything is."""
        found = []
        if self.tasks:
            found.append("tasks " + ", ".join(map(repr, self.tasks)))
        if self.episodes is not None:
            first, end = self.episodes
            found.append(f"episodes {first}-{end - 1}" if end > first + 1 else f"episode {first}")
        if self.episode_list:
            found.append(f"episodes {ranges(sorted(self.episode_list))}")
        if self.trim != (0, 0):
            ends = zip(("first", "last"), self.trim, strict=True)
            cut = " and the ".join(f"{end} {count(steps, 'step')}" for end, steps in ends if steps)
            found.append(f"without the {cut} of each episode")
        if self.segments:
            found.append(_segments_in_words(self.segments))
        if self.outcome != "any":
            found.append({"success": "successes only", "failure": "failures only"}[self.outcome])
        weights = [("failures", self.failure_weight)] if self.failure_weight != 1 else []
        weights += [(repr(glob), weight) for glob, weight in self.task_weights]
        found += [f"{what} {weight:g} times as often" for what, weight in weights]
        return "; ".join(found)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        pair = self.episodes
        if pair is not None and not 0 <= pair[0] < pair[1]:
            yield Problem(
                "episodes",
                "the first episode and the one after the last",
                self.episodes,
                "Count from 0: (0, 10) are the first ten.",
            )
        beyond = [number for number in self.episode_list if not 0 <= number <= _MOST]
        wrong = beyond or _repeated(self.episode_list)
        if wrong:
            yield Problem(
                "episode_list",
                "different numbers of episodes, counted from 0",
                ", ".join(map(str, wrong)),
                "Name episodes of the dataset, each once.",
            )
        yield from self._check_parts()
        yield from self._check_weights()

    def _check_parts(self) -> Iterator[Problem]:
        if min(self.trim) < 0:
            yield Problem(
                "trim",
                "two numbers of steps, of 0 or more",
                self.trim,
                "(10, 5) leaves out the first ten and the last five steps of each episode.",
            )
        wrong = [
            each
            for each in self.segments
            if min(each) < 0 or max(each) > _MOST or each[1] >= each[2]
        ]
        if wrong:
            yield Problem(
                "segments",
                "an episode, its first step and the one after the last",
                ", ".join(map(str, wrong)),
                "Count from 0: (3, 0, 10) are the first ten steps of episode 3.",
            )
            return
        pairs = itertools.pairwise(sorted(self.segments))
        both = [f"{a} and {b}" for a, b in pairs if a[0] == b[0] and a[2] > b[1]]
        if both:
            yield Problem(
                "segments",
                "parts that share no step",
                "; ".join(both),
                "Each step is sampled once: join them, or let one end where the next begins.",
            )

    def _check_weights(self) -> Iterator[Problem]:
        if not 0 < self.failure_weight < math.inf:
            yield Problem(
                "failure_weight",
                "a finite number above 0",
                self.failure_weight,
                "To leave failures out, set outcome='success'.",
            )
        wrong = [pair for pair in self.task_weights if not 0 < pair[1] < math.inf]
        if wrong:
            yield Problem(
                "task_weights",
                "weights that are finite and above 0",
                ", ".join(f"{glob!r} {weight}" for glob, weight in wrong),
                "To leave a task out, name the others in `tasks`.",
            )
        twice = _repeated([glob for glob, _ in self.task_weights])
        if twice:
            yield Problem(
                "task_weights",
                "each glob once",
                ", ".join(map(repr, twice)),
                "The first that matches an instruction counts: remove the others.",
            )


def _repeated(values: Sequence[T]) -> list[T]:
    return [value for value, number in Counter(values).items() if number > 1]


def _segments_in_words(segments: tuple[tuple[int, int, int], ...]) -> str:
    steps = sum(end - first for _, first, end in segments)
    episodes = count(len({episode for episode, _, _ in segments}), "episode")
    return f"{count(len(segments), 'segment')} of {episodes}, {count(steps, 'step')}"
