"""Describes a loader: as text, for a policy's checkpoint, and by the memory that it will take."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.dataset import Dataset, excluded_note
from pipeline.data.statistics import FeatureStatistics
from pipeline.files import to_json_values
from pipeline.loading.batch import BatchSpec
from pipeline.loading.data_config import DataConfig
from pipeline.loading.transforms.batch_transforms import name_of
from pipeline.loading.window_reader import WindowReader
from pipeline.memory import LoaderMemory

if TYPE_CHECKING:
    from pipeline.loading.loader import Loader

_SHOWN_DATASETS, _SHOWN_TRANSFORMS = 4, 8
"""Lines of a description."""


def describe(loader: "Loader") -> str:
    """Returns the datasets, the chain and the size of a batch of a loader, in at most 15 lines.

    Args:
      loader: A loader with any config.
    """
    config = loader.config
    parts = zip(loader.datasets, config.datasets, loader.shares, strict=True)
    datasets = [
        f"  {d.path}: {d.num_steps:,} steps{excluded_note(d.manifest)}, {share:.1%}"
        + (f": {choice}" if (choice := part.choice()) else "")
        for d, part, share in parts
    ]
    if len(datasets) > _SHOWN_DATASETS:
        datasets[_SHOWN_DATASETS - 1 :] = [f"  and {len(datasets) - _SHOWN_DATASETS + 1} more"]
    windows = f"window_size {config.window_size}, action_horizon {config.action_horizon}"
    ids = f" as {config.max_text_length} token ids" if loader.tokenizes else ""
    texts = {
        "WindowReader": f"{windows}: {', '.join(config.observations)}",
        "StandardizeGripper": "1 = open, 0 = close",
        "Normalize": f"{config.normalization}: {', '.join(loader.normalized)}",
        "LookUpTask": f"{len(loader.tasks.texts):,} instructions{ids}",
        "NormalizeAction": f"{config.normalization}: action",
        "CheckBatch": "checks the dtype and shape of every array",
    }
    chain = dict.fromkeys(name_of(transform) for transform in loader.transforms())
    if len(chain) > _SHOWN_TRANSFORMS:
        own = list(chain)[_SHOWN_TRANSFORMS - 1 :]
        chain = dict.fromkeys([*list(chain)[: _SHOWN_TRANSFORMS - 1], f"and {len(own)} more"])
    # The types of what a user's own transforms return are not known.
    before = ", before your own transforms" if loader.has_own_transforms else ""
    megabytes = sum(leaf.nbytes for leaf in loader.spec.values()) / 1e6
    size = f"{len(loader.spec)} arrays, {megabytes:.3g} MB"
    return "\n".join(
        [
            f"batches of {loader.batch_size} from {loader.num_steps:,} sampled steps of",
            *datasets,
            "chain:",
            *(f"  {name:20}{texts.get(name, '')}".rstrip() for name in chain),
            f"batch: {size}{before}; `loader.spec` has their types",
        ]
    )


def describe_dataset(
    number: int,
    reader: WindowReader,
    config: DataConfig,
    statistics: Mapping[str, Sequence[FeatureStatistics]],
    normalized: BatchSpec,
) -> dict[str, Any]:
    """Describes a dataset for a policy's checkpoint, as JSON values.

    Args:
      number: Index of the dataset in the mixture.
      reader: Reader of the mixture.
      config: Config of the loader.
      statistics: Statistics that the samples of each dataset are normalised by, by feature.
      normalized: Types of the arrays that are normalised, after the config's transforms.
    """
    dataset = reader.datasets[number]
    manifest = dataset.manifest
    used = {key: of_each[number] for key, of_each in statistics.items()}
    features = {
        feature.key: {
            "shape": list(reader.stored(number, feature.key).shape),
            "dtype": feature.batch_dtype,
            "dims": list(reader.dims(feature.key)),
            # Absent for other kinds, so that descriptions of older runs stay equal.
            **({"kind": feature.kind} if feature.kind == "depth" else {}),
        }
        for feature in reader.features
    }
    changed, excluded = resized(reader, number), manifest.excluded_episodes
    choice = _choices(dataset, reader, config)
    names = {key: list(leaf.dims) for key, leaf in normalized.items()} if config.transforms else {}
    return {
        "name": manifest.name,
        "digest": manifest.digest(),
        "schema_hash": manifest.schema.hash(),
        "num_episodes": len(dataset.kept_episodes),
        "licences": {
            column: manifest.licences[column] for column in sorted(reader.columns[number])
        },
        "features": features,
        # Absent if empty, so that descriptions of older runs stay equal.
        **({"excluded_episodes": list(excluded)} if excluded else {}),
        **({"choice": choice} if choice else {}),
        **({"resized": changed} if changed else {}),
        **({"statistics_dims": names} if names else {}),
        "conventions": to_json_values(manifest.conventions),
        "encoders": {
            key: to_json_values(origin)
            for key, origin in manifest.encoders.items()
            if key in config.keys
        },
        "normalization": config.normalization,
        "provenance": dict(manifest.provenance),
        # `used` wins: merged statistics are what the samples were normalised by.
        "statistics": {k: s.to_json() for k, s in (dataset.statistics | used).items()},
    }


def _choices(dataset: Dataset, reader: WindowReader, config: DataConfig) -> str:
    """What is chosen of a directory, in words; it may be in the mixture several times."""
    pairs = zip(reader.datasets, config.datasets, strict=True)
    found = [part.choice() for one, part in pairs if one.path == dataset.path]
    chosen = " | ".join(choice or "all" for choice in found) if any(found) else ""
    return (chosen + excluded_note(dataset.manifest)).removeprefix("; ")


def resized(reader: WindowReader, number: int) -> dict[str, list[int]]:
    """Returns the shapes in a batch of cameras that a dataset stores at another size, by key."""
    return {
        feature.key: list(feature.shape)
        for feature in reader.features
        if reader.stored(number, feature.key).shape != feature.shape
    }


def predict_memory(batch_bytes: int, reader: WindowReader, config: DataConfig) -> LoaderMemory:
    """Predicts the memory of a loader.

    Args:
      batch_bytes: Size of the part of a batch that this process makes.
      reader: Reader of the mixture.
      config: Config of the loader.
    """
    largest = max(
        # The mean record of a shard stands for its largest one.
        shard.num_bytes // max(shard.records, 1)
        for dataset, columns in zip(reader.datasets, reader.columns, strict=True)
        for column in columns
        for shard in dataset.manifest.shards[column]
    )
    return LoaderMemory.predict(
        batch_bytes=batch_bytes,
        record_bytes=largest + _scratch_bytes(reader),
        num_threads=config.num_threads,
        prefetch_batches=config.prefetch_batches,
    )


def _scratch_bytes(reader: WindowReader) -> int:
    """Memory for resizing one image, in addition to the batch."""
    pairs = [
        (math.prod(reader.stored(number, key).shape), math.prod(shape))
        for number in range(len(reader.datasets))
        for key, shape in resized(reader, number).items()
    ]
    # The stored pixels, and a few float32 copies of one channel.
    return max((5 * stored + 6 * new for stored, new in pairs), default=0)
