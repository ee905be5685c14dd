"""The steps of a dataset that a run samples, by their numbers among the selected ones."""

import dataclasses

import numpy as np
import xxhash

from pipeline.errors import DataError

# More attempts than any realistic share of excluded steps needs.
_SCATTERED_ATTEMPTS = 64
_NONE = np.array([], np.int64)
_WHOLE = np.empty((0, 2), np.int64)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The selected steps of one dataset, numbered from 0."""

    starts: np.ndarray
    """int64 (runs): first step of each stretch of selected steps, ascending."""
    counts: np.ndarray
    """int64 (runs + 1): number of selected steps before each stretch, then their total."""
    unsampled: np.ndarray = dataclasses.field(default_factory=lambda: _NONE)
    """int64, ascending: steps whose samples would read an excluded record."""
    unseen: np.ndarray = dataclasses.field(default_factory=lambda: _NONE)
    """int64, ascending: steps whose images are in an excluded record."""
    spans: np.ndarray = dataclasses.field(default_factory=lambda: _WHOLE)
    """int64 (spans 2), ascending: first step and the one after the last of each part of an episode
    that its windows stay in; empty: they stay in their episodes."""
    strata: tuple["Stratum", ...] = ()
    """The steps by how often they are sampled; empty: all alike, with the weight 1."""

    @property
    def num_steps(self) -> int:
        """Number of selected steps."""
        return int(self.counts[-1])

    @property
    def num_samples(self) -> float:
        """Number of selected steps, each counted by its weight."""
        return sum(stratum.num_samples for stratum in self.strata) or self.num_steps

    @property
    def all_steps(self) -> np.ndarray:
        """The selected steps of the dataset, ascending; int64 (num_steps)."""
        return self._at(np.arange(self.num_steps))

    def steps(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the steps of the dataset for numbers of selected steps; int64 (b).

        A step that would read an excluded record is replaced by another selected step, chosen by a
        hash of its number, so that no single step replaces many.

        Args:
          numbers: int64 (b), each at least 0 and less than `num_steps`.
        """
        steps = self._at(numbers)
        bad = np.isin(steps, self.unsampled)
        attempt = 0
        # A stand-in may be excluded too, so it is drawn again by the next attempt.
        while bad.any():
            attempt += 1
            # From the number, not the step: the same sample is replaced alike in every epoch.
            steps[bad] = self._at(_stand_ins(numbers[bad], attempt, self.num_steps))
            bad = np.isin(steps, self.unsampled)
        return steps

    def goals(self, first: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Returns the steps whose images are read as goals; int64 (b).

        A step whose images are in an excluded record is replaced by the step before it.

        Args:
          first: int (b), current steps of the samples, from `steps`.
          goal: int (b), steps of the same episodes, none before `first`.
        """
        # Not before the sample's own step, where the loop has to end.
        bad = np.isin(goal, self.unseen) & (goal > first)
        while bad.any():
            goal = np.where(bad, goal - 1, goal)
            bad = np.isin(goal, self.unseen) & (goal > first)
        return goal

    def bounds(self, steps: np.ndarray, episodes: np.ndarray) -> np.ndarray:
        """Returns the first step and the one after the last that windows reach; int64 (b 2).

        Args:
          steps: int64 (b), steps of the dataset.
          episodes: int64 (b 2), the same of the episodes of those steps.
        """
        if not len(self.spans):
            return episodes
        spans = self.spans[np.searchsorted(self.spans[:, 0], steps, side="right") - 1]
        # Steps outside all spans can be read, though no sample stands at them.
        is_inside = (spans[:, 0] <= steps) & (steps < spans[:, 1])
        return np.where(is_inside[:, None], spans, episodes)

    def over_whole_episodes(self) -> "Selection":
        """Returns the same steps, with windows that stay in their episodes alone."""
        return dataclasses.replace(self, spans=_WHOLE)

    def example(self) -> np.ndarray:
        """Returns the sampled steps of the stretch that lost the fewest steps; int64 (t).

        If several stretches lost equally few, it is the first of them.
        """
        ends, lost = self.starts + np.diff(self.counts), self._num_lost
        left = ends - self.starts > lost
        # Stretches without a step left cannot win.
        best = int(np.argmin(np.where(left, lost, np.iinfo(np.int64).max)))
        steps = np.arange(self.starts[best], ends[best])
        return steps[~np.isin(steps, self.unsampled)]

    def check(self, where: str) -> None:
        """Raises a `DataError` if exclusion leaves no step to sample."""
        if self._num_lost.sum() == self.num_steps:
            raise DataError(
                where=where,
                expected="a selected step whose sample reads no excluded record",
                found=f"none among {self.num_steps}",
                remedy="Leave the dataset out, or convert it again from an intact source.",
            )

    def digest(self) -> str:
        """Checksum of the selected steps, 16 hex digits; excluded records do not change it."""
        # Without `unsampled`: a run may exclude a record on resume. Without what is empty, so that
        # checkpoints from before there were spans and strata are continued.
        state = xxhash.xxh3_64(self.starts.tobytes() + self.counts.tobytes())
        state.update(self.spans.tobytes())
        for stratum in self.strata:
            state.update(f"{stratum.weight!r} {stratum.selection.digest()}".encode())
        return state.hexdigest()

    @property
    def _num_lost(self) -> np.ndarray:
        """Excluded steps inside each stretch; int64 (runs)."""
        ends = self.starts + np.diff(self.counts)
        # `unsampled` is ascending.
        return np.searchsorted(self.unsampled, ends) - np.searchsorted(self.unsampled, self.starts)

    def _at(self, numbers: np.ndarray) -> np.ndarray:
        # The last stretch that starts at or before each number.
        run = np.searchsorted(self.counts, numbers, side="right") - 1
        return self.starts[run] + numbers - self.counts[run]


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Selected steps of one weight."""

    weight: float
    """How often each is sampled, relative to a step of the weight 1."""
    selection: Selection
    """Those steps; without strata of its own."""

    @property
    def num_samples(self) -> float:
        """Number of its steps, each counted by the weight."""
        return self.weight * self.selection.num_steps


def _stand_ins(numbers: np.ndarray, attempt: int, num_steps: int) -> np.ndarray:
    """Replacement numbers, int64 (b); later attempts run through all numbers below `num_steps`.

    Source: the multipliers of SplitMix64 (Steele et al. 2014).
    """
    if attempt > _SCATTERED_ATTEMPTS:
        # Scattering may never hit the few steps that are left; counting reaches all of them.
        return (numbers + attempt) % num_steps
    # uint64 arithmetic wraps, as the hash needs.
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(attempt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed >> np.uint64(11)) % np.uint64(num_steps)).astype(np.int64)
