"""Computes the order of the samples: the dataset, step and random draws of each."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np

from pipeline.errors import UserError
from pipeline.loading.samples.selection import Selection, Stratum

_NUM_DRAWS = 4
"""64-bit words of one Philox block, the draws of one sample."""
# Turns in one period: 16 bytes each, 17 MB at most.
_LONGEST_PERIOD = 1 << 20


@dataclasses.dataclass(frozen=True)
class HostShard:
    """One of the processes that share every batch."""

    index: int = 0
    """Index of this process, from 0."""
    count: int = 1
    """Number of processes."""

    def rows(self, batch_size: int) -> range:
        """Returns the rows of a global batch that this process makes; all make equally many.

        Raises:
          UserError: The batch size is not a multiple of the number of processes.
        """
        share, rest = divmod(batch_size, self.count)
        if rest or not share:
            raise UserError(
                where="config.batch_size",
                expected=f"a multiple of {self.count}, the number of processes",
                found=str(batch_size),
                remedy=f"Take {batch_size - rest or self.count}.",
            )
        return range(self.index * share, (self.index + 1) * share)


WHOLE_BATCH = HostShard()
"""The shard of a single process: all rows."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """The positions of a batch's samples in their datasets, before anything is read."""

    index: np.ndarray
    """int64 (b): index of each sample in the run."""
    dataset: np.ndarray
    """int64 (b): index of its dataset in the mixture."""
    step: np.ndarray
    """int64 (b): step of that dataset."""
    draws: np.ndarray
    """float64 (b 4) in [0, 1), random draws that depend only on the seed and `index`: for the goal,
    for the choice of text or goal images, and two spare ones."""


class Turns:
    """Assigns each sample to a dataset, and to an index among that dataset's samples.

    One period holds as many turns for each dataset as its weight says, spread evenly; it repeats
    without end. Shares are exact if the weights are integers with a sum below a million, such as
    numbers of steps; otherwise they are rounded to millionths.

    Args:
      weights: Share of each dataset, on any scale.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._counts = _whole_turns(np.asarray(weights, np.float64))
        # The middle of each turn's interval: n turns at (k + 0.5) / n of the period.
        turns = np.concatenate([(np.arange(count) + 0.5) / count for count in self._counts])
        # Stable, so that ties go to the earlier dataset on every platform.
        order = np.argsort(turns, kind="stable")
        self._datasets = np.repeat(np.arange(len(weights)), self._counts)[order]
        # Which of its dataset's turns in the period each turn is.
        self._ranks = np.concatenate([np.arange(count) for count in self._counts])[order]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the samples that come from each dataset; they sum to 1."""
        return tuple((self._counts / self._counts.sum()).tolist())

    def __call__(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps samples, int64 (b), to (dataset, index among its samples), int64 (b) each."""
        period, place = np.divmod(index, len(self._datasets))
        dataset = self._datasets[place]
        # Whole periods, then the rank within this one.
        return dataset, period * self._counts[dataset] + self._ranks[place]


class SampleOrder:
    """An infinite source for Grain: element i lists the samples of batch i.

    Each dataset is shuffled globally, in a new order each epoch, and gives every selected step once
    per epoch. If its steps have weights, each weight's steps are shuffled on their own and take
    turns with the others: a step of the weight 2 comes twice while one of the weight 1 comes once,
    and none comes again before all of its weight have come.

    Args:
      selections: The selected steps of each dataset.
      weights: Share of each dataset, on any scale.
      seed: Seed of all shuffles and draws; each dataset has its own shuffles.
      batch_size: Number of samples in a global batch.
      shard: The rows of each global batch that are returned.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        weights: Sequence[float],
        seed: int,
        batch_size: int,
        shard: HostShard = WHOLE_BATCH,
    ) -> None:
        self._parts = _parts(selections, weights)
        self._turns = Turns([part.weight for part in self._parts])
        # `MapDataset` computes the permutation of an index, so no list of steps is in memory.
        self._shuffled = [
            grain.MapDataset.range(part.selection.num_steps)
            # Own shuffles: parts of equal size must not run through their steps in the same order.
            .seed(_child_seed(seed, *part.place))
            .shuffle()
            # `repeat` shuffles again in each epoch.
            .repeat()
            for part in self._parts
        ]
        self._seed = seed
        self._batch_size = batch_size
        self._rows = shard.rows(batch_size)

    def __len__(self) -> int:
        """More batches than any run takes."""
        # Grain asks for a length; with this one the index of every sample fits in 64 bits.
        return sys.maxsize // self._batch_size

    def __getitem__(self, index: int) -> Samples:
        """Returns this process's samples of batch `index`."""
        first = index * self._batch_size + self._rows.start
        places = np.arange(first, first + len(self._rows))
        turn, number = self._turns(places)
        # Number of each sample within its part, not yet shuffled.
        dataset, step = np.empty_like(number), np.empty_like(number)
        for index, part in enumerate(self._parts):
            rows = np.flatnonzero(turn == index)
            dataset[rows] = part.place[0]
            shuffled = [self._shuffled[index][n] for n in number[rows].tolist()]
            step[rows] = part.selection.steps(np.array(shuffled, np.int64))
        return Samples(places, dataset, step, sample_draws(self._seed, first, len(places)))


def sample_draws(seed: int, first: int, num_samples: int) -> np.ndarray:
    """Random draws of the samples `first`, `first` + 1, ...: float64 (n 4) in [0, 1).

    Source: Philox4x64-10 (Salmon et al. 2011), whose counter is the sample's index; NumPy keeps
    its bits the same between releases.
    """
    # The counter is the first sample's index, so any batch starts without drawing those before it.
    key, counter = (np.array(words, np.uint64) for words in ([seed, 0], [first, 0, 0, 0]))
    words = np.random.Philox(key=key, counter=counter).random_raw(num_samples * _NUM_DRAWS)
    # The upper 53 bits fill a float64's mantissa exactly: no value rounds up to 1.
    return (words >> np.uint64(11)).reshape(num_samples, _NUM_DRAWS) * 2.0**-53


@dataclasses.dataclass(frozen=True)
class _Part:
    """Steps that are shuffled together, and take turns with the others."""

    place: tuple[int, ...]
    """Index of the dataset; then, where its steps have weights, that of the stratum from 1."""
    selection: Selection
    weight: float


def _parts(selections: Sequence[Selection], weights: Sequence[float]) -> list[_Part]:
    """The datasets, or their strata where steps have weights."""
    if not any(selection.strata for selection in selections):
        pairs = zip(selections, weights, strict=True)
        return [_Part((number,), *pair) for number, pair in enumerate(pairs)]
    places, shares = [], []
    for number, selection in enumerate(selections):
        strata = selection.strata or (Stratum(1.0, selection),)
        counts = [_fraction(s.weight) * s.selection.num_steps for s in strata]
        # From 1: trailing zeros do not change a seed.
        own = [(number, place) for place in range(1, len(strata) + 1)]
        places += own if selection.strata else [(number,)]
        shares += [_fraction(weights[number]) * count / sum(counts) for count in counts]
    chosen = [s.selection for one in selections for s in one.strata or (Stratum(1.0, one),)]
    turns = _exact(shares)
    return [_Part(*each) for each in zip(places, chosen, turns, strict=True)]


def _fraction(weight: float) -> Fraction:
    """The weight as it was written: 0.1 is a tenth, not the nearest binary number."""
    rounded = Fraction(weight).limit_denominator(_LONGEST_PERIOD)
    # A tiny weight is far from all of these; the nearest may be 0.
    return rounded if math.isclose(rounded, weight) else Fraction(repr(float(weight)))


def _exact(shares: Sequence[Fraction]) -> list[float]:
    """Whole numbers of turns in one period, or the shares if it would be too long."""
    whole = [int(share * math.lcm(*(s.denominator for s in shares))) for share in shares]
    whole = [count // math.gcd(*whole) for count in whole]
    return [*map(float, whole if sum(whole) <= _LONGEST_PERIOD else shares)]


def _whole_turns(weights: np.ndarray) -> np.ndarray:
    """Turns of each dataset in one period: int64 (datasets), each at least 1."""
    is_whole = (weights == np.floor(weights)).all() and weights.sum() <= _LONGEST_PERIOD
    # Weights of any scale become turns of one period; a rare dataset still gets one.
    if not is_whole:
        weights = np.maximum(np.round(weights / weights.sum() * _LONGEST_PERIOD), 1)
    counts = weights.astype(np.int64)
    # The shortest period with these shares, and the smallest table.
    return counts // np.gcd.reduce(counts)


def _child_seed(seed: int, *place: int) -> int:
    # SeedSequence mixes the numbers, so neighbouring seeds share no dataset's shuffle.
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])
