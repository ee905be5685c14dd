"""Statistics of what transforms change, computed once and kept beside the dataset."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Collection, Sequence

import numpy as np
from etils import epath

from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import TRANSFORMED_NAME
from pipeline.data.schema import ACTION, EPISODES
from pipeline.data.statistics import Accumulator, FeatureStatistics
from pipeline.errors import DataError, UserError
from pipeline.files import (
    dump_json,
    json_checksum,
    parse_json,
    read_text,
    to_json_values,
    write_text_atomically,
)
from pipeline.loading.batch import DATASET_INDEX, FlatBatch
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.samples.sampling import Samples
from pipeline.loading.samples.splits import select
from pipeline.loading.transforms.action_dims import ACTION_MASK
from pipeline.loading.transforms.batch_transforms import StandardizeGripper
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation
from pipeline.loading.transforms.transform import Transform
from pipeline.loading.transforms.transform_chain import TransformChain
from pipeline.loading.window_reader import WindowReader

_log = logging.getLogger(__name__)
_VERSION = 1
"""Incremented when the same data and transforms give other statistics."""
_QUATERNION_VERSION = 2
"""The version of actions with quaternions, whose real part is not negative."""
_MASKS = "observation/pad_mask_dict"
_STEPS = 256
"""Steps that are read and transformed at once."""


def transformed_statistics(
    datasets: Sequence[Dataset], number: int, config: DataConfig
) -> dict[str, FeatureStatistics]:
    """Returns the statistics of the arrays that a config's transforms change, by path.

    They are of every step of the dataset but those of the episodes that `octograin edit` excluded,
    as the transforms leave it, without random ones: of an
    action, over all real actions of its chunk. Only trajectories are read, unless a transform reads
    an image. The result is kept in the dataset directory, under a hash of everything that it
    depends on; where the directory cannot be written it is computed again each time.

    Steps that would read an excluded record are left out. Statistics that were kept when fewer of
    the records were excluded are used as they are.

    Args:
      datasets: The datasets of the mixture: what this one lacks has the type that the others give.
      number: Index of the dataset.
      config: Config of the loader.

    Raises:
      RecordError: A record is corrupt.
      DataError: The values after the transforms have no statistics.
      SchemaError: A transform returns other types than it declares.
    """
    if not config.transforms:
        return {}
    dataset = datasets[number]
    path = dataset.directory / TRANSFORMED_NAME
    names, kept = _names(dataset, config.datasets[number], config), _read(path)
    # A run that excludes another record on resume keeps the statistics of its start.
    for name in filter(kept.__contains__, names):
        values = kept[name]["statistics"]
        return {key: FeatureStatistics.from_json(value) for key, value in values.items()}
    _log.info("statistics of %s after the transforms", dataset.path)
    found = _compute(datasets, number, config)
    values = {key: value.to_json() for key, value in found.items()}
    try:
        # Read again: another process may have added its own.
        entry = {"checksum": json_checksum(values), "statistics": values}
        write_text_atomically(path, dump_json(_read(path) | {names[0]: entry}))
    except OSError as error:
        _log.info("they are not kept: %s", error)
    return found


def _names(dataset: Dataset, part: DatasetConfig, config: DataConfig) -> list[str]:
    """Hashes everything that the statistics depend on, 16 hex digits.

    The first is that of all excluded records; each further one leaves out the last of them.
    """
    # The transforms with a user's own, whose source is part of their JSON.
    described, transforms = to_json_values(config), config.transforms
    names = ("transforms", "window_size", "action_horizon", "octo_action_mask", "observations")
    find = dataset.manifest.schema.find
    columns = {EPISODES, *(find(key, dataset.path)[0].name for key in config.keys_of(part))}
    content = {name: described.get(name) for name in (*names, "current_only", "windows")}
    content |= {
        "version": _QUATERNION_VERSION if any(map(_gives_quaternions, transforms)) else _VERSION,
        # All columns: a transform may make a vector of images.
        "data": dataset.manifest.digest(columns),
        "missing": part.missing,
    }
    fewer = [part.excluded[:count] for count in range(len(part.excluded), -1, -1)]
    texts = [json.dumps(content | {"excluded": records}, sort_keys=True) for records in fewer]
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def _gives_quaternions(transform: Transform) -> bool:
    is_of_actions = isinstance(transform, ConvertActionRotation)
    return is_of_actions and transform.target.startswith("quaternion")


def _read(path: epath.Path) -> dict[str, dict]:
    """Reads kept statistics; those that cannot be read are computed again."""
    if not path.exists():
        return {}
    expected, remedy = "statistics as a loader writes them", "They are computed again."
    try:
        text = read_text(path, expected=expected, remedy=remedy)
        kept = parse_json(text, where=str(path), expected=expected, remedy=remedy)
    except DataError as error:
        _log.warning("%s", error)
        return {}
    if not isinstance(kept, dict):
        kept = {}
    return {name: entry for name, entry in kept.items() if _is_intact(entry)}


def _is_intact(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("statistics"), dict)
        and entry.get("checksum") == json_checksum(entry["statistics"])
    )


def _compute(
    datasets: Sequence[Dataset], number: int, config: DataConfig
) -> dict[str, FeatureStatistics]:
    parts = tuple(part.whole() for part in config.datasets)
    config = dataclasses.replace(config, datasets=parts, split="all")
    # Goal images have no statistics, and actions after a goal count in them.
    reader = _reader(
        datasets, number, dataclasses.replace(config, conditioning="language_conditioned")
    )
    frames = [name for name in config.observations if name not in reader.trajectories]
    try:
        if frames:
            kept = tuple(name for name in config.observations if name not in frames)
            few = _reader(datasets, number, _reading(reader.config, kept))
            return _accumulate(few, number, config)
    except UserError as error:
        # Anything else is an error of the transform.
        missing = error.__cause__.args[0] if isinstance(error.__cause__, KeyError) else None
        if missing not in {f"{of}/{name}" for of in ("observation", "task") for name in frames}:
            raise
        _log.info("every %s is read, as a transform reads it", missing)
    return _accumulate(reader, number, config)


def _reader(datasets: Sequence[Dataset], number: int, config: DataConfig) -> WindowReader:
    """Returns a reader that selects the steps of a dataset that read no excluded record."""
    selection = select(datasets[number], config.datasets[number], config)
    # Only goals are looked for in the selections, and there are none here. Steps ascend, so those
    # of an episode share one read.
    return WindowReader(
        tuple(datasets),
        (selection,) * len(datasets),
        config,
        read_episode=functools.lru_cache(maxsize=1)(ColumnReader.read),
    )


def _reading(config: DataConfig, names: tuple[str, ...]) -> DataConfig:
    """Returns the config for a reader of some of its observations."""
    parts = (
        dataclasses.replace(part, missing=tuple(name for name in part.missing if name in names))
        for part in config.datasets
    )
    return dataclasses.replace(
        config,
        datasets=tuple(parts),
        observations=names,
        current_only=tuple(name for name in config.current_only if name in names),
        windows=tuple(pair for pair in config.windows if pair[0] in names),
        normalized=None,
        transforms=(),
    )


def _accumulate(
    reader: WindowReader, number: int, config: DataConfig
) -> dict[str, FeatureStatistics]:
    """Returns the statistics of the steps that a reader selects, where transforms change them.

    An array that the dataset lacks has none.
    """
    whole = WindowReader(reader.datasets, reader.selections, config)
    chain = TransformChain.bind(config.transforms, whole.spec(1), seed=None)
    standardize = StandardizeGripper(tuple(d.manifest.conventions for d in reader.datasets))
    vectors = [k for k, leaf in chain.spec.items() if leaf.dtype == "float32" and leaf.dims]
    keys = [key for key in vectors if key.startswith((ACTION, "observation/"))]
    absent = set(config.observations) - set(reader.config.observations)
    sums, changed = {key: Accumulator() for key in keys}, set[str]()
    selection = reader.selections[number]
    steps = np.setdiff1d(selection.all_steps, selection.unsampled)
    for begin in range(0, len(steps), _STEPS):
        read = standardize(reader(_samples(steps[begin : begin + _STEPS], number)))
        dataset = read[DATASET_INDEX]
        read |= {f"{_MASKS}/{name}": whole.pad_mask(name, dataset) for name in absent}
        if config.has_goals:
            read |= _own_goals(read, whole.cameras)
        batch = chain.trace(read)[-1]
        for key in filter(batch.__contains__, keys):
            rows = _rows(batch, key)
            if len(rows):
                sums[key].add(rows)
                if batch[key] is not read.get(key):
                    changed.add(key)
    return {key: sums[key].finish() for key in keys if key in changed}


def _own_goals(batch: FlatBatch, cameras: Collection[str]) -> FlatBatch:
    """Returns the arrays of goals, as if each sample's current step were its goal."""
    goals = {"task/timestep": batch["observation/timestep"][:, -1]}
    for name in cameras:
        goals[f"task/pad_mask_dict/{name}"] = batch[f"{_MASKS}/{name}"][:, -1]
        if f"observation/{name}" in batch:
            goals[f"task/{name}"] = batch[f"observation/{name}"][:, -1]
    return goals


def _samples(steps: np.ndarray, number: int) -> Samples:
    """Returns the samples of steps of one of the datasets."""
    count = len(steps)
    # No goal is drawn.
    return Samples(np.arange(count), np.full(count, number), steps, np.zeros((count, 4)))


def _rows(batch: FlatBatch, key: str) -> np.ndarray:
    """Returns the values of a batch that count, float32 (n d)."""
    # Each step once: as the last one of its window.
    values = batch[key][:, -1]
    if key == ACTION:
        return values[batch[ACTION_MASK][:, -1].any(axis=-1)]
    mask = batch.get(key.replace("observation", _MASKS, 1))
    return values if mask is None else values[mask[:, -1]]
