"""The order of the samples, as integers: which dataset, which step."""

from collections.abc import Sequence

import grain
import numpy as np


def index_stream(
    num_steps: Sequence[int], weights: Sequence[float], seed: int
) -> grain.MapDataset[tuple[int, int]]:
    """An endless stream of (dataset, step); element i is a pure function of i and `seed`.

    Each dataset is shuffled globally, anew each epoch, and gives every step once an epoch.

    Args:
      num_steps: Steps of each dataset.
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


def _child_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
