"""Normalises arrays by statistics of their dataset, and undoes it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pipeline.data.schema import ACTION
from pipeline.loading.batch import DATASET_INDEX, BatchSpec, FlatBatch
from pipeline.loading.transforms.transform import Draws
from pipeline.loading.transforms.transform_chain import TransformChain


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """One affine map per dataset of the mixture; arrays are float32.

    `normal` is (x - mean) / (std + 1e-8); `bounds` is 2 (x - p01) / (p99 - p01 + 1e-8) - 1, clipped
    to [-1, 1]; `quantile` is the same with 1e-6 and without the clip, so it is invertible.

    Source: `normal` and `bounds` are Octo's `normalize_action_and_proprio`; `quantile` is openpi's
    `Normalize` with `use_quantiles`.
    """

    offset: np.ndarray
    """(datasets, d): the value that becomes 0."""
    scale: np.ndarray
    """(datasets, d): the distance from `offset` to the value that becomes 1."""
    mask: np.ndarray
    """bool (datasets, d): False where a dimension is left as it is."""
    clip: bool
    """Whether normalised values are clipped to [-1, 1]."""

    def normalize(self, values: np.ndarray, dataset: np.ndarray) -> np.ndarray:
        """Returns the normalised values, float32 (b ... d).

        Args:
          values: float32 (b ... d).
          dataset: int (b), index of each sample's dataset in the mixture.
        """
        offset, scale, mask = self._rows(values.ndim, dataset)
        normalized = (values - offset) / scale
        # Clipped values cannot be undone, so `unnormalize` gives the bound.
        if self.clip:
            normalized = np.clip(normalized, -1, 1)
        # The mask keeps the gripper and missing observations as they are.
        return np.where(mask, normalized, values).astype(np.float32, copy=False)

    def unnormalize(self, values: np.ndarray, dataset: np.ndarray) -> np.ndarray:
        """Inverts `normalize`, except for clipped values."""
        offset, scale, mask = self._rows(values.ndim, dataset)
        return np.where(mask, values * scale + offset, values).astype(np.float32, copy=False)

    def _rows(self, ndim: int, dataset: np.ndarray) -> list[np.ndarray]:
        """Offset, scale and mask of each sample, (b 1 ... d)."""
        # (b, 1, ..., 1, d): the same statistics for every step of a sample.
        shape = (len(dataset), *[1] * (ndim - 2), self.offset.shape[-1])
        # Fancy indexing takes each sample's row by its dataset.
        return [table[dataset].reshape(shape) for table in (self.offset, self.scale, self.mask)]


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Normalises one feature by the statistics of each sample's dataset."""

    key: str
    """Path in the batch."""
    normalizer: Normalizer
    """Normalizer that holds the statistics of all datasets of the mixture."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Makes float32 of any stored dtype."""
        return spec | {self.key: dataclasses.replace(spec[self.key], dtype="float32")}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Replaces the array at `key`; steps that are missing stay zero."""
        del spec, draws
        values = batch[self.key]
        normalized = self.normalizer.normalize(values, batch[DATASET_INDEX])
        name = self.key.removeprefix("observation/")
        is_read = batch.get(f"observation/pad_mask_dict/{name}")
        if is_read is not None and not is_read.all():
            # The last columns are those of a shorter window.
            real = is_read[:, -values.shape[1] :, None]
            normalized = np.where(real, normalized, values.astype(np.float32, copy=False))
        return batch | {self.key: normalized}


class NormalizeAction(Normalize):
    """Normalises the actions."""

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Inverts it, except for values that `bounds` clips."""
        del spec
        return self.normalizer.unnormalize(action, batch[DATASET_INDEX])


def with_normalizers(
    chain: TransformChain, normalizers: Mapping[str, Normalizer], seed: int | None
) -> TransformChain:
    """Returns a chain with the normalizers of the action and of observations at its end."""
    kinds = {ACTION: NormalizeAction}
    made = [kinds.get(key, Normalize)(key, one) for key, one in normalizers.items()]
    return chain.then(made, seed)
