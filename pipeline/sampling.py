"""The order of the samples, as integers: which dataset, which step, and each sample's draws."""

import dataclasses
import sys
from collections.abc import Sequence

import grain
import numpy as np

from pipeline.errors import UserError
from pipeline.selection import Selection

_NUM_DRAWS = 4
"""64-bit words of one Philox block, the draws of one sample."""
_LONGEST_PERIOD = 1 << 20


@dataclasses.dataclass(frozen=True)
class HostShard:
    """This process among those that share every batch."""

    index: int = 0
    """From 0."""
    count: int = 1
    """Processes."""

    def rows(self, batch_size: int) -> range:
        """The rows of a global batch that this process makes; all have as many.

        Raises:
          UserError: Where the processes do not divide the batch.
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
"""What a single process makes."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Where the samples of a batch come from, before anything is read."""

    index: np.ndarray
    """int64 (b): place of each in the whole run's series of samples."""
    dataset: np.ndarray
    """int64 (b): place in the mixture."""
    step: np.ndarray
    """int64 (b): step of that dataset."""
    draws: np.ndarray
    """float64 (b 4) in [0, 1), a function of the seed and `index` alone: of the goal, of what
    conditions the sample, and two to spare."""


class Turns:
    """Which dataset each sample comes from, and which of its samples it is.

    A period of whole turns, as many for each dataset as its weight says, spread evenly, is repeated
    without end. Shares are exact where the weights are whole numbers of a sum below a million, such
    as numbers of steps; else they are rounded to millionths.

    Args:
      weights: Share of each dataset, of any scale.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._counts = _whole_turns(np.asarray(weights, np.float64))
        turns = np.concatenate([(np.arange(count) + 0.5) / count for count in self._counts])
        order = np.argsort(turns, kind="stable")
        self._datasets = np.repeat(np.arange(len(weights)), self._counts)[order]
        self._ranks = np.concatenate([np.arange(count) for count in self._counts])[order]

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the samples that each dataset gives; they sum to 1."""
        return tuple((self._counts / self._counts.sum()).tolist())

    def __call__(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(dataset, number among its samples), int64 (b) each, of samples int64 (b)."""
        period, place = np.divmod(index, len(self._datasets))
        dataset = self._datasets[place]
        return dataset, period * self._counts[dataset] + self._ranks[place]


class SampleOrder:
    """A source without end for Grain: element i says where the samples of batch i come from.

    Each dataset is shuffled globally, in a new order each epoch, and gives every selected step once
    per epoch.

    Args:
      selections: The steps of each dataset.
      weights: Share of each, of any scale.
      seed: Of all shuffles and draws; each dataset has its own shuffles.
      batch_size: Samples of a global batch.
      shard: The rows of it that are asked for.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        weights: Sequence[float],
        seed: int,
        batch_size: int,
        shard: HostShard = WHOLE_BATCH,
    ) -> None:
        self._selections = tuple(selections)
        self._turns = Turns(weights)
        self._shuffled = [
            grain.MapDataset.range(selection.num_steps)
            .seed(_child_seed(seed, number))
            .shuffle()
            .repeat()
            for number, selection in enumerate(selections)
        ]
        self._seed = seed
        self._batch_size = batch_size
        self._rows = shard.rows(batch_size)

    def __len__(self) -> int:
        """More batches than any run takes."""
        return sys.maxsize // self._batch_size

    def __getitem__(self, index: int) -> Samples:
        """The samples of a batch."""
        first = index * self._batch_size + self._rows.start
        places = np.arange(first, first + len(self._rows))
        dataset, number = self._turns(places)
        step = np.empty_like(number)
        for place, selection in enumerate(self._selections):
            rows = np.flatnonzero(dataset == place)
            shuffled = [self._shuffled[place][n] for n in number[rows].tolist()]
            step[rows] = selection.steps(np.array(shuffled, np.int64))
        return Samples(places, dataset, step, sample_draws(self._seed, first, len(places)))


def sample_draws(seed: int, first: int, num_samples: int) -> np.ndarray:
    """float64 (n 4) in [0, 1): the draws of the samples `first`, `first` + 1, ...

    Source: Philox4x64-10 (Salmon et al. 2011), whose counter is the sample's index; NumPy keeps
    its bits the same between releases.
    """
    key, counter = (np.array(words, np.uint64) for words in ([seed, 0], [first, 0, 0, 0]))
    words = np.random.Philox(key=key, counter=counter).random_raw(num_samples * _NUM_DRAWS)
    return (words >> np.uint64(11)).reshape(num_samples, _NUM_DRAWS) * 2.0**-53


def _whole_turns(weights: np.ndarray) -> np.ndarray:
    """int64 (datasets), each at least 1: the turns of a period."""
    is_whole = (weights == np.floor(weights)).all() and weights.sum() <= _LONGEST_PERIOD
    if not is_whole:
        weights = np.maximum(np.round(weights / weights.sum() * _LONGEST_PERIOD), 1)
    counts = weights.astype(np.int64)
    return counts // np.gcd.reduce(counts)


def _child_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
