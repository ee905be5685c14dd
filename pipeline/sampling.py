"""The order of the samples, as integers: which dataset, which step, and each sample's draws."""

import dataclasses
import sys
from collections.abc import Sequence

import grain
import numpy as np

from pipeline.selection import Selection

_NUM_DRAWS = 4
"""64-bit words of one Philox block, the draws of one sample."""


@dataclasses.dataclass(frozen=True)
class HostShard:
    """This process among those that share every batch."""

    index: int = 0
    """From 0."""
    count: int = 1
    """Processes."""

    def rows(self, batch_size: int) -> range:
        """The rows of a global batch that this process makes; all have as many."""
        share = batch_size // self.count
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


class SampleOrder:
    """A source without end for Grain: element i says where the samples of batch i come from.

    Args:
      selections: The steps of each dataset.
      weights: Share of each, of any scale.
      seed: Of all shuffles and draws.
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
        self._stream = index_stream([s.num_steps for s in selections], weights, seed)
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
        pairs = np.array([self._stream[i] for i in places.tolist()])
        dataset, step = pairs.T.copy()
        for number, selection in enumerate(self._selections):
            rows = dataset == number
            step[rows] = selection.steps(step[rows])
        return Samples(places, dataset, step, sample_draws(self._seed, first, len(places)))


def index_stream(
    num_steps: Sequence[int], weights: Sequence[float], seed: int
) -> grain.MapDataset[tuple[int, int]]:
    """An endless stream of (dataset, number of a selected step); a function of place and `seed`.

    Each dataset is shuffled globally, anew each epoch, and gives every step once an epoch.

    Args:
      num_steps: Selected steps of each dataset.
      weights: Share of each, of any scale.
      seed: Of all shuffles; each dataset has its own stream.
    """
    datasets = [
        grain.MapDataset.range(n)
        .seed(_child_seed(seed, number))
        .shuffle()
        .repeat()
        .map(lambda step, number=number: (number, step))
        for number, n in enumerate(num_steps)
    ]
    total = float(sum(weights))
    return grain.MapDataset.mix(datasets, [weight / total for weight in weights])


def sample_draws(seed: int, first: int, num_samples: int) -> np.ndarray:
    """float64 (n 4) in [0, 1): the draws of the samples `first`, `first` + 1, ...

    Source: Philox4x64-10 (Salmon et al. 2011), whose counter is the sample's index; NumPy keeps
    its bits the same between releases.
    """
    key, counter = (np.array(words, np.uint64) for words in ([seed, 0], [first, 0, 0, 0]))
    words = np.random.Philox(key=key, counter=counter).random_raw(num_samples * _NUM_DRAWS)
    return (words >> np.uint64(11)).reshape(num_samples, _NUM_DRAWS) * 2.0**-53


def _child_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
