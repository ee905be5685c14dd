"""The loader: from dataset directories to checked batches, in one visible chain."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np
import sentencepiece

from pipeline.batch import BatchSpec, LeafSpec
from pipeline.config import DataConfig
from pipeline.dataset import Dataset
from pipeline.errors import DataError, SchemaError
from pipeline.files import to_json_values
from pipeline.gather import DATASET_INDEX, Gather
from pipeline.normalize import Normalizer
from pipeline.sampling import index_stream
from pipeline.schema import ACTION, EPISODES
from pipeline.statistics import FeatureStatistics
from pipeline.text import TaskTable, tokenize
from pipeline.transforms import LookUpTask, Normalize, Seal, StandardizeGripper

_log = logging.getLogger(__name__)
_PROPRIO = "observation/proprio"
_VERSION = 1
"""Grows whenever the same config and data give other batches; the tests pin their content."""


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """One step's input."""

    arrays: dict[str, Any]
    """Nested numpy arrays, as the contract says."""
    fingerprint: str
    """8 hex digits over every byte."""
    position: int
    """Batches before this one; what the loader resumes from once this one is used is one more."""


class Loader:
    """Batches of a mixture; batch i is a pure function of the config, the data and i.

    Args:
      config: What is read, and how.
      batch_size: Samples a batch, over all devices.
      datasets: The opened directories of `config.datasets`, in order.
      vocabulary: T5's SentencePiece model.

    Raises:
      SchemaError: Where a dataset lacks a feature, or has another type than the first.
    """

    def __init__(
        self,
        config: DataConfig,
        batch_size: int,
        datasets: Sequence[Dataset],
        vocabulary: sentencepiece.SentencePieceProcessor,
    ) -> None:
        self.config = config
        self.batch_size = batch_size
        self.datasets = tuple(datasets)
        self._gather = Gather(self.datasets, config)
        _check_alike(self.datasets, self._gather)
        texts = tuple(dict.fromkeys(t for d in datasets for t in d.manifest.tasks))
        self.tasks: TaskTable = tokenize(texts, vocabulary, config.max_text_length)

    @functools.cached_property
    def spec(self) -> BatchSpec:
        """The contract: every leaf's type, known without reading a record."""
        b, length = self.batch_size, self.config.max_text_length
        spec = {k: v for k, v in self._gather.spec(b).items() if k != DATASET_INDEX}
        for key in self.normalizers():
            spec[key] = LeafSpec("float32", spec[key].shape)
        for name in ("input_ids", "attention_mask"):
            spec[f"task/language_instruction/{name}"] = LeafSpec("int32", (b, length))
        spec["task/pad_mask_dict/language_instruction"] = LeafSpec("bool", (b,))
        return dict(sorted(spec.items()))

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all that decides what batch i holds."""
        config = to_json_values(self.config)
        for name in ("num_threads", "prefetch_batches", "vocabulary"):
            del config[name]
        config["batch_size"] = self.batch_size
        config["version"] = _VERSION
        config["datasets"] = [
            (d.manifest.digest(self._gather.columns), w) for d, w in self._weighted
        ]
        config["conventions"] = [to_json_values(d.manifest.conventions) for d in self.datasets]
        config["statistics"] = [
            [s.to_json() for s in self._statistics(key)] for key in self.normalizers()
        ]
        config["tasks"] = self.tasks.input_ids.tolist()
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def num_steps(self) -> int:
        """Steps of all datasets."""
        return sum(dataset.num_steps for dataset in self.datasets)

    def transforms(self) -> list[Callable[[Any], Any]]:
        """What happens to a batch of indices, in order."""
        conventions = tuple(d.manifest.conventions for d in self.datasets)
        normalizers = self.normalizers()
        return [
            self._gather,
            StandardizeGripper(conventions),
            *(Normalize(key, normalizer) for key, normalizer in normalizers.items()),
            LookUpTask(self.tasks, tuple(map(self._rows, self.datasets))),
            Seal(self.spec),
        ]

    def normalizers(self) -> dict[str, Normalizer]:
        """Of the action (the gripper is left as it is) and of the proprioception."""
        kind = self.config.normalization
        dims = self._gather.features[0].shape[0]
        masks = [d.manifest.conventions.normalized_dims(dims) for d in self.datasets]
        normalizers = {ACTION: Normalizer.create(self._statistics(ACTION), masks, kind)}
        if "proprio" in self.config.observations:
            statistics = self._statistics(_PROPRIO)
            masks = [np.ones(s.mean.shape, bool) for s in statistics]
            normalizers[_PROPRIO] = Normalizer.create(statistics, masks, kind)
        return normalizers

    def batches(self, position: int = 0) -> Generator[LoadedBatch]:
        """Yields batches without end, from the one after `position` batches; close it after use.

        Raises:
          DataError: A damaged shard, record or image.
          SchemaError: A batch that breaks the contract.
        """
        stream = index_stream(
            [d.num_steps for d in self.datasets], [w for _, w in self._weighted], self.config.seed
        ).batch(self.batch_size)
        for transform in self.transforms():
            stream = stream.map(transform)
        options = grain.ReadOptions(self.config.num_threads, self.config.prefetch_batches)
        iterator = iter(stream.to_iter_dataset(options))
        iterator.set_state({"next_index": position})
        try:
            for arrays, fingerprint in iterator:
                yield LoadedBatch(arrays, fingerprint, position)
                position += 1
        finally:
            iterator.close()

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint keeps of the loader after `position` batches."""
        return {"position": position, "fingerprint": self.fingerprint}

    def restore(self, state: dict[str, Any]) -> int:
        """The position of a kept state.

        Raises:
          DataError: Where it was kept with other data, order or shapes.
        """
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                where="loader state of the checkpoint",
                expected=f"fingerprint {self.fingerprint}, of this config and these datasets",
                found=state["fingerprint"],
                remedy="Resume with the run's own config and datasets, or start a new run.",
            )
        return int(state["position"])

    @property
    def _weighted(self) -> list[tuple[Dataset, float]]:
        pairs = zip(self.datasets, self.config.datasets, strict=True)
        return [(d, float(d.num_steps if c.weight is None else c.weight)) for d, c in pairs]

    def _statistics(self, key: str) -> list[FeatureStatistics]:
        """Of each dataset, with one value a dimension."""
        return [_find_statistics(dataset, key) for dataset in self.datasets]

    def _rows(self, dataset: Dataset) -> np.ndarray:
        """int32 (tasks): the table's row of each task of a dataset."""
        rows = {text: row for row, text in enumerate(self.tasks.texts)}
        return np.array([rows[text] for text in dataset.manifest.tasks], np.int32)


def _find_statistics(dataset: Dataset, key: str) -> FeatureStatistics:
    """The statistics that a feature is normalised by."""
    _, feature = dataset.manifest.schema.find(key, dataset.path)
    found = dataset.statistics.get(key)
    if found is None or found.mean.shape != feature.shape:
        raise DataError(
            where=f"{dataset.path}/statistics.json, {key}",
            expected=f"statistics of {feature.dtype}{list(feature.shape)}",
            found="none" if found is None else f"those of {len(found.mean)} dimensions",
            remedy="Only vectors of float32 are normalised: convert the dataset again with one.",
        )
    return found


def _check_alike(datasets: Sequence[Dataset], gather: Gather) -> None:
    """Every dataset must hold the features of the first, with the same types and meaning."""
    for dataset in datasets:
        for feature in gather.features:
            column, found = dataset.manifest.schema.find(feature.key, dataset.path)
            if feature.key == ACTION and column.name != EPISODES:
                raise SchemaError(
                    where=f"{dataset.path}, {ACTION}",
                    expected=f"a trajectory in the column {EPISODES}",
                    found=f"the column {column.name}",
                    remedy="Convert the dataset again, without a `column` for the action.",
                )
            if (found.shape, found.batch_dtype) != (feature.shape, feature.batch_dtype):
                raise SchemaError(
                    where=f"{dataset.path}, {feature.key}",
                    expected=f"{feature.batch_dtype}{list(feature.shape)}, as {datasets[0].path}",
                    found=f"{found.batch_dtype}{list(found.shape)}",
                    remedy="Train on datasets of one shape, or convert them to it.",
                )
        _check_meaning(dataset, datasets[0])


def _check_meaning(dataset: Dataset, first: Dataset) -> None:
    """What the loader does not bring to one convention must be the same in all datasets."""
    names = ("image_orientation", "rotation", "control_frequency_hz", "gripper_dim")
    ours, theirs = (
        {name: getattr(d.manifest.conventions, name) for name in names} for d in (first, dataset)
    )
    if ours != theirs:
        differing = [name for name in names if ours[name] != theirs[name]]
        raise SchemaError(
            where=f"{dataset.path}, conventions",
            expected=", ".join(f"{name} {ours[name]}" for name in differing) + f", as {first.path}",
            found=", ".join(f"{name} {theirs[name]}" for name in differing),
            remedy="Train on datasets of one convention; mend a wrong one in dataset.json.",
        )
