"""Reading the windows of a batch straight into its arrays: the one place that reads records."""

import dataclasses
import functools

import numpy as np

from pipeline.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.config import DataConfig
from pipeline.dataset import Dataset
from pipeline.images import decode_image
from pipeline.schema import ACTION, EPISODES, Feature
from pipeline.windows import chunk_indices, history_indices

DATASET_INDEX = "dataset_index"
"""Each sample's place in the mixture; leaves the batch before the contract is checked."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where the samples of a batch lie."""

    dataset: np.ndarray
    """int (b): place in the mixture."""
    episode: np.ndarray
    """int (b): record of the episode column."""
    history: np.ndarray
    """int (b w): steps inside the episode."""
    history_mask: np.ndarray
    """bool (b w): False before the first step."""
    chunk: np.ndarray
    """int (b w h): steps of the actions."""
    chunk_mask: np.ndarray
    """bool (b w h): False past the last step."""


@dataclasses.dataclass(frozen=True)
class Gather:
    """Makes a batch of (dataset, step) pairs: windows, chunks and masks, as stored."""

    datasets: tuple[Dataset, ...]
    """The mixture; all hold the same features."""
    config: DataConfig
    """Names the observations, the window and the horizon."""

    @functools.cached_property
    def features(self) -> tuple[Feature, ...]:
        """The action, then the observations in the config's order."""
        first = self.datasets[0]
        return tuple(first.manifest.schema.find(key, first.path)[1] for key in self.config.keys)

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The columns that are read, of any dataset."""
        return frozenset({EPISODES}.union(*self._keys_by_column))

    def spec(self, batch_size: int) -> BatchSpec:
        """The types of the arrays that a call makes of `batch_size` samples."""
        b, w, h = batch_size, self.config.window_size, self.config.action_horizon
        action, *observations = self.features
        spec = {f.key: LeafSpec(str(f.batch_dtype), (b, w, *f.shape)) for f in observations}
        spec["observation/timestep"] = LeafSpec("int32", (b, w))
        spec["observation/timestep_pad_mask"] = LeafSpec("bool", (b, w))
        for name in self.config.observations:
            spec[f"observation/pad_mask_dict/{name}"] = LeafSpec("bool", (b, w))
        spec[ACTION] = LeafSpec(str(action.batch_dtype), (b, w, h, *action.shape))
        spec["action_pad_mask"] = LeafSpec("bool", (b, w, h, *action.shape))
        spec["task/task_index"] = LeafSpec("int32", (b,))
        spec[DATASET_INDEX] = LeafSpec("int32", (b,))
        return spec

    def __call__(self, indices: tuple[np.ndarray, np.ndarray]) -> FlatBatch:
        """Reads a batch.

        Args:
          indices: int (b) places in the mixture and int (b) steps of those datasets.

        Returns:
          Arrays as `spec` says; `task/task_index` counts each dataset's own tasks.

        Raises:
          DataError: A damaged shard, record or image.
        """
        windows = self.locate(*map(np.asarray, indices))
        spec = self.spec(len(windows.dataset))
        batch = {key: np.empty(leaf.shape, leaf.dtype) for key, leaf in spec.items()}
        batch[DATASET_INDEX][...] = windows.dataset
        batch["observation/timestep"][...] = windows.history
        batch["observation/timestep_pad_mask"][...] = windows.history_mask
        batch["action_pad_mask"][...] = windows.chunk_mask[..., None]
        for name in self.config.observations:
            batch[f"observation/pad_mask_dict/{name}"][...] = True
        for sample in range(len(windows.dataset)):
            self._read_episode(batch, windows, sample)
            self._read_steps(batch, windows, sample)
        return batch

    def locate(self, dataset: np.ndarray, step: np.ndarray) -> Windows:
        """The windows of int (b) steps of int (b) datasets; arithmetic only."""
        places = [
            (self.datasets[d].locate(s), self.datasets[d].manifest.episode_lengths)
            for d, s in zip(dataset.tolist(), step.tolist(), strict=True)
        ]
        episode = np.array([place[0] for place, _ in places])
        t = np.array([place[1] for place, _ in places])
        lengths = np.array([lengths[place[0]] for place, lengths in places])
        history, history_mask = history_indices(t, self.config.window_size)
        chunk, chunk_mask = chunk_indices(history, lengths, self.config.action_horizon)
        return Windows(dataset, episode, history, history_mask, chunk, chunk_mask)

    def _read_episode(self, batch: FlatBatch, windows: Windows, sample: int) -> None:
        """Fills the low-dimensional arrays of one sample from its episode's record."""
        place = windows.dataset[sample]
        dataset, episode = self.datasets[place], int(windows.episode[sample])
        record = dataset.columns[EPISODES].read(episode)
        history = windows.history[sample]
        batch["task/task_index"][sample] = dataset.task_index(episode, int(history[-1]))
        batch[ACTION][sample] = record[ACTION][windows.chunk[sample]]
        for key in self._keys_by_column[place].get(EPISODES, ()):
            batch[key][sample] = record[key][history]

    def _read_steps(self, batch: FlatBatch, windows: Windows, sample: int) -> None:
        """Fills images and tokens of one sample, a record a step; padding is copied, not read."""
        place = windows.dataset[sample]
        dataset = self.datasets[place]
        first = int(dataset.episode_starts[windows.episode[sample]])
        history = windows.history[sample].tolist()
        for column, keys in self._keys_by_column[place].items():
            if column == EPISODES:
                continue
            for slot, t in enumerate(history):
                if slot and t == history[slot - 1]:
                    for key in keys:
                        batch[key][sample, slot] = batch[key][sample, slot - 1]
                    continue
                record = dataset.columns[column].read(first + t)
                where = f"{dataset.path}, column {column}, record {first + t}"
                for key in keys:
                    _place(record[key], batch[key][sample, slot], f"{where}, {key}")

    @functools.cached_property
    def _keys_by_column(self) -> tuple[dict[str, tuple[str, ...]], ...]:
        """The observations that are read from each column, of each dataset."""
        return tuple(self._group_by_column(dataset) for dataset in self.datasets)

    def _group_by_column(self, dataset: Dataset) -> dict[str, tuple[str, ...]]:
        keys: dict[str, tuple[str, ...]] = {}
        for feature in self.features[1:]:
            column, _ = dataset.manifest.schema.find(feature.key, dataset.path)
            keys[column.name] = (*keys.get(column.name, ()), feature.key)
        return keys


def _place(value: np.ndarray | bytes, out: np.ndarray, where: str) -> None:
    if isinstance(value, bytes):
        decode_image(value, out, where)
    else:
        out[...] = value
