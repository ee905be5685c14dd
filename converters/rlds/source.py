"""A TFDS/RLDS directory: its declared types, its files, and its episodes as numpy arrays."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError, Message
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters.rlds.tfrecord import read_records
from pipeline.errors import DataError, SchemaError

STEPS = "steps/"
"""Prefix of every key that has one value a step."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")

Episode = dict[str, np.ndarray | list[bytes]]
"""By source key: a tensor (t, *shape), or a list of t encoded images or UTF-8 texts.

Keys outside `steps/` have one value: t is 1."""


@dataclasses.dataclass(frozen=True)
class SourceKey:
    """A leaf of `features.json`."""

    key: str
    """Its path, such as `steps/observation/state`."""
    kind: Literal["tensor", "image", "text"]
    """What it holds."""
    shape: tuple[int, ...]
    """Of one value."""
    dtype: str
    """As declared; of the decoded pixels for an image, `utf8` for a text."""


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """One TFRecord file."""

    path: epath.Path
    """Where it lies."""
    num_episodes: int
    """Records that `dataset_info.json` promises."""


@dataclasses.dataclass(frozen=True)
class RldsSource:
    """An RLDS directory whose specification has been read; no episode has."""

    directory: epath.Path
    """The folder that holds `features.json`."""
    name: str
    """As `dataset_info.json` says; published LIBERO sets are renamed on disk, not inside."""
    version: str
    """As `dataset_info.json` says."""
    split: str
    """The split that is read."""
    keys: Mapping[str, SourceKey]
    """By key, in the order of their names."""
    shards: tuple[SourceShard, ...]
    """In the order of their episodes."""

    def episodes(self, shard: SourceShard) -> Iterator[tuple[str, Episode]]:
        """Yields (place for errors, episode) for every record of a shard.

        Raises:
          DataError: A damaged file, or one with another number of records than declared.
          SchemaError: A value that is not what `features.json` declares.
        """
        count = 0
        for record in read_records(shard.path):
            where = f"{shard.path}, episode {count}"
            yield where, parse_episode(record, self.keys, where)
            count += 1
        if count != shard.num_episodes:
            raise DataError(
                where=str(shard.path),
                expected=f"{shard.num_episodes} episodes, as dataset_info.json says",
                found=f"{count}",
                remedy="The file is damaged or its download incomplete: fetch it again.",
            )


def open_source(path: str, split: str = "train") -> RldsSource:
    """Opens an RLDS directory, `.../name/1.0.0` or `.../name` where it has one version.

    Raises:
      DataError: Where there is none, its files are not readable, or the split is not there.
      SchemaError: Where `features.json` declares what this project cannot store.
    """
    directory = _find_version(epath.Path(path))
    for file in ("features.json", "dataset_info.json"):
        _check_json(directory / file)
    with _named_as_broken(directory):
        info = tfds.builder_from_directory(directory).info
    return RldsSource(
        directory=directory,
        name=info.name,
        version=str(info.version),
        split=split,
        keys=_declared_keys(info.features, str(directory / "features.json")),
        shards=_declared_shards(info, split, directory),
    )


def parse_episode(record: bytes, keys: Mapping[str, SourceKey], where: str) -> Episode:
    """The values of one serialized `tf.train.Example` that holds an episode.

    Args:
      record: The serialized message.
      keys: What it has to hold.
      where: File and episode, for errors.

    Raises:
      DataError: Bytes that are no such message.
      SchemaError: A key that is missing or undeclared, values of another kind, number or length.
    """
    try:
        example = tf_example.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    except DecodeError as error:
        raise DataError(
            where=where,
            expected="a serialized tf.train.Example",
            found=str(error),
            remedy="Convert from a directory that tensorflow-datasets wrote.",
        ) from error
    stored = example.features.feature
    undeclared = sorted(set(stored) - set(keys))
    if undeclared:
        raise _mismatch(where, "only keys of features.json", ", ".join(undeclared))
    episode = {key: _read_value(stored, spec, where) for key, spec in keys.items()}
    for key, value in episode.items():
        if not key.startswith(STEPS) and len(value) != 1:
            raise _mismatch(f"{where}, {key}", "one value an episode", str(len(value)))
    lengths = {key: len(value) for key, value in episode.items() if key.startswith(STEPS)}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise _mismatch(where, "the same number of steps for every key, at least 1", str(lengths))
    return episode


def _read_value(stored: Mapping[str, Any], spec: SourceKey, where: str) -> np.ndarray | list[bytes]:
    where = f"{where}, {spec.key}"
    if spec.key not in stored:
        raise _mismatch(where, f"{spec.dtype}{list(spec.shape)}", "no such key")
    feature = stored[spec.key]
    kind = feature.WhichOneof("kind")
    expected = _stored_kind(spec)
    if kind != expected:
        raise _mismatch(where, expected, str(kind))
    if kind == "bytes_list":
        return list(feature.bytes_list.value)
    if kind == "float_list":
        flat = _packed_floats(feature.float_list, len(feature.float_list.value))
    else:
        flat = np.array(feature.int64_list.value, np.int64)
    size = int(np.prod(spec.shape, dtype=np.int64))
    if size == 0 or flat.size % size:
        raise _mismatch(where, f"a multiple of {size} values", f"{flat.size}")
    return _as_declared(flat, spec.dtype, where).reshape(-1, *spec.shape)


def _as_declared(flat: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """The values of a list in their declared dtype; a uint64 is stored as an int64 of its bits.

    A float16 that overflows becomes infinite, which the dtype law refuses.
    """
    with np.errstate(over="ignore"):
        values = flat.astype(dtype, copy=False)
    if flat.dtype == np.int64 and (changed := values.astype(np.int64) != flat).any():
        raise _mismatch(where, f"{dtype} values", f"values such as {flat[changed][0]}")
    return values


def _packed_floats(values: Message, count: int) -> np.ndarray:
    """float32 (n) of a float list, through its packed bytes.

    TFDS stores a float16 tensor as such a list: 534,528 values a step of 261 tokens. Taking them
    one by one through Python costs 20 times what reading the file does.
    """
    packed = values.SerializeToString()
    return np.frombuffer(packed, "<f4", offset=len(packed) - 4 * count)


def _stored_kind(spec: SourceKey) -> str:
    if spec.kind != "tensor":
        return "bytes_list"
    return "float_list" if spec.dtype in _FLOATS else "int64_list"


def _declared_shards(info: Any, split: str, directory: epath.Path) -> tuple[SourceShard, ...]:
    where = str(directory / "dataset_info.json")
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DataError(
            where=where,
            expected="files in TFRecord",
            found=str(info.file_format.value),
            remedy="Prepare the dataset again with file_format='tfrecord'.",
        )
    if split not in info.splits or not info.splits[split].shard_lengths:
        raise DataError(
            where=where,
            expected=f"a split {split} with shards",
            found=", ".join(info.splits) or "none",
            remedy="Name another split with --split.",
        )
    with _named_as_broken(directory):
        paths = info.splits[split].filepaths
    lengths = info.splits[split].shard_lengths
    return tuple(
        SourceShard(epath.Path(path), length) for path, length in zip(paths, lengths, strict=True)
    )


def _declared_keys(features: Any, where: str) -> dict[str, SourceKey]:
    if not isinstance(features, tfds.features.FeaturesDict) or "steps" not in features:
        raise _mismatch(where, "an RLDS feature dictionary with `steps`", _one_line(features))
    leaves = dict(_leaves(features, ""))
    return {key: _source_key(key, leaves[key], where) for key in sorted(leaves)}


def _leaves(
    feature: tfds.features.FeatureConnector, path: str
) -> Iterator[tuple[str, tfds.features.FeatureConnector]]:
    """Every (path, feature) below a feature; `steps` is the one sequence that is entered."""
    if isinstance(feature, tfds.features.Dataset) and path == "steps":
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, child in feature.items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    else:
        yield path, feature


def _source_key(key: str, feature: Any, where: str) -> SourceKey:
    """The declared type of a leaf feature of tensorflow-datasets; others are refused."""
    shape: Any = feature.shape
    np_dtype: Any = feature.np_dtype  # of a nested feature a dict, which numpy refuses
    if isinstance(feature, tfds.features.Text):
        return SourceKey(key, "text", (), "utf8")
    if isinstance(feature, tfds.features.Image) and None not in shape:
        return SourceKey(key, "image", tuple(shape), np.dtype(np_dtype).name)
    encoding = _encoding(feature)
    dense = isinstance(feature, tfds.features.Tensor) and None not in shape
    if not dense or encoding != "none":
        raise SchemaError(
            where=f"{where}, {key}",
            expected="a text, or an image or tensor of known shape without an encoding",
            found=f"{_one_line(feature)} with the encoding {encoding}",
            remedy="Write the source with such a feature; ragged and nested ones are refused.",
        )
    dtype = np.dtype(np_dtype)
    if dtype.kind in "OSU" and shape == ():
        return SourceKey(key, "text", (), "utf8")
    return SourceKey(key, "tensor", tuple(shape), dtype.name)


def _encoding(feature: tfds.features.FeatureConnector) -> str:
    """How the values are packed; `none` is a plain list, as a class label's always are."""
    return getattr(feature.to_json_content(), "encoding", "") or "none"


def _find_version(path: epath.Path) -> epath.Path:
    if (path / "features.json").exists():
        return path
    versions = []
    if path.is_dir():
        versions = sorted(p for p in path.iterdir() if (p / "features.json").exists())
    if len(versions) == 1:
        return versions[0]
    found = ", ".join(p.name for p in versions) if versions else "none"
    raise DataError(
        where=str(path),
        expected="an RLDS directory with features.json, or one version folder that has it",
        found=found if path.exists() else "no such directory",
        remedy="Name the version's folder, such as libero_spatial_no_noops/1.0.0.",
    )


def _check_json(path: epath.Path) -> None:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            where=str(path),
            expected="a JSON file that tensorflow-datasets wrote",
            found=f"{type(error).__name__}: {error}",
            remedy="The download is incomplete: fetch the directory again.",
        ) from error


@contextlib.contextmanager
def _named_as_broken(directory: epath.Path) -> Iterator[None]:
    """Names the directory where tensorflow-datasets fails inside the block.

    It raises whatever its parsers raise: of protobuf for JSON of another form, a ValueError for a
    feature class or version that it does not know, an ImportError for one that needs TensorFlow.
    """
    try:
        yield
    except (ParseError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise DataError(
            where=str(directory),
            expected="a features.json and a dataset_info.json that tensorflow-datasets reads",
            found=f"{type(error).__name__}: {_one_line(error)}",
            remedy="Fetch the directory again, or write it with tensorflow-datasets' own features.",
        ) from error


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _mismatch(where: str, expected: str, found: str) -> SchemaError:
    return SchemaError(
        where=where,
        expected=expected,
        found=found,
        remedy="The records must be what features.json declares: write the source again.",
    )
