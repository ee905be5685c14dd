"""Small dataset directories of any features, written without a source; for tests."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from pipeline.data import statistics
from pipeline.data.conventions import Conventions
from pipeline.data.dataset_writer import ShardWriter, write_manifest
from pipeline.data.manifest import FORMAT_VERSION, Manifest
from pipeline.data.record import RecordLayout
from pipeline.data.schema import EPISODES, Column, Feature, Schema

CONVENTIONS = Conventions("upright", "none", control_frequency_hz=10.0, no_ops="kept")
LENGTH = 6
"""Steps of every episode."""


def write_dataset(
    directory: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...] | np.ndarray],
    *,
    pixels: Sequence[str] = (),
    tasks: Sequence[str] = ("lift the cup", "open the drawer"),
    num_episodes: int = 4,
    dims: Mapping[str, tuple[str, ...]] = {},
    conventions: Conventions = CONVENTIONS,
) -> pathlib.Path:
    """Writes a dataset of episodes of `LENGTH` steps, and returns its directory.

    Args:
      directory: Is made.
      shapes: By feature key, the shape of one step, filled with noise: an encoded image where it is
        (h, w, 3), else float32; or the values of all steps, of depth where they are uint16.
      pixels: Keys of the images that are stored as tensors of their pixels.
      tasks: Instructions, one per episode, in turn.
      num_episodes: Number of episodes in the dataset.
      dims: Names of the dimensions, by feature key.
      conventions: Conventions of the dataset.
    """
    rng = np.random.default_rng(0)
    num_steps = num_episodes * LENGTH
    values = {key: _noise(rng, num_steps, shape) for key, shape in shapes.items()}
    features = [
        dataclasses.replace(_feature(key, value[0], pixels), dims=dims.get(key, ()))
        for key, value in values.items()
    ]
    cameras = tuple(f for f in features if f.is_camera or f.kind == "depth")
    columns = [Column(EPISODES, "episode", tuple(f for f in features if f not in cameras))]
    columns += [Column("steps", "step", cameras)] if cameras else []
    shards = {column.name: (_write(directory, column, values, num_episodes),) for column in columns}
    schema = Schema(tuple(columns))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=directory.name,
        schema=schema,
        schema_hash=schema.hash(),
        shards=shards,
        episode_lengths=(LENGTH,) * num_episodes,
        episode_tasks=tuple(episode % len(tasks) for episode in range(num_episodes)),
        task_changes=(),
        tasks=tuple(tasks),
        task_source="steps/language_instruction",
        removed_steps=(0,) * len(tasks),
        conventions=conventions,
        licences={column.name: "unknown" for column in columns},
        provenance={},
    )
    floats = {key: v.reshape(num_steps, -1) for key, v in values.items() if v.dtype == np.float32}
    computed = {key: statistics.compute(value) for key, value in floats.items()}
    write_manifest(epath.Path(directory), manifest, computed)
    return directory


def _noise(
    rng: np.random.Generator, num_steps: int, shape: tuple[int, ...] | np.ndarray
) -> np.ndarray:
    if isinstance(shape, np.ndarray):
        return shape
    if shape[2:] == (3,):
        return rng.integers(0, 256, (num_steps, *shape), np.uint8)
    return rng.normal(1.0, 2.0, (num_steps, *shape)).astype(np.float32)


def _feature(key: str, value: Any, pixels: Sequence[str]) -> Feature:
    is_image = value.shape[2:] == (3,) and key not in pixels
    dtype = str(value.dtype)
    if dtype == "uint16":
        return Feature(key, "depth", value.shape, dtype, "float32", f"s/{key}")
    return Feature(key, "image" if is_image else "tensor", value.shape, dtype, dtype, f"s/{key}")


def _write(
    directory: pathlib.Path, column: Column, values: Mapping[str, np.ndarray], num_episodes: int
) -> Any:
    layout = RecordLayout(column)
    steps = [slice(LENGTH * n, LENGTH * (n + 1)) for n in range(num_episodes)]
    places = steps if column.per == "episode" else range(LENGTH * num_episodes)
    with ShardWriter(directory, f"{column.name}/0.arrayrecord") as writer:
        for number, place in enumerate(places):
            record = {f.key: _stored(f, values[f.key][place]) for f in column.features}
            length = LENGTH if column.per == "episode" else 1
            writer.write(layout.encode((0, number), length, record))
    return writer.finished()


def _stored(feature: Feature, value: Any) -> Any:
    if feature.kind == "tensor":
        return np.asarray(value)
    out = io.BytesIO()
    Image.fromarray(value[..., 0] if feature.kind == "depth" else value).save(out, "PNG")
    return out.getvalue()
