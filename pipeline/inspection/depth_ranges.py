"""Ranges of depth images, of a few steps of a dataset or an episode."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.inspection.image_strips import spread

NUM_STEPS = 8
"""Number of steps that are read, spread evenly."""


@dataclasses.dataclass(frozen=True)
class DepthRange:
    """What the depth images of a few steps hold."""

    steps: int
    """Number of steps that were read."""
    min_m: float
    """Least reading; 0 if there is none."""
    max_m: float
    """Greatest reading."""
    readings: float
    """Share of pixels with a reading."""


def depth_ranges(dataset: Dataset, steps: range) -> Mapping[str, DepthRange]:
    """Returns the range of every depth feature, by key, over `NUM_STEPS` of the steps.

    Args:
      dataset: The opened directory.
      steps: Steps, counted over the whole dataset.

    Raises:
      DataError: A record or image is corrupt.
    """
    read = [steps[place] for place in spread(len(steps), NUM_STEPS)]
    return {
        feature.key: _range(dataset, column.name, feature.key, read)
        for column, feature in dataset.manifest.schema.features()
        if feature.kind == "depth"
    }


def _range(dataset: Dataset, column: str, key: str, steps: Sequence[int]) -> DepthRange:
    reader = dataset.columns[column]
    images = np.empty((len(steps), *reader.features[key].shape), np.float32)
    for step, image in zip(steps, images, strict=True):
        reader.read_into(step, {key: image})
    readings = images[images > 0]
    # Rounded to the millimetre, as float32 metres have more digits than were stored.
    ends = (readings.min(), readings.max()) if readings.size else (0.0, 0.0)
    least, most = (round(float(end), 3) for end in ends)
    return DepthRange(len(steps), least, most, readings.size / images.size)
