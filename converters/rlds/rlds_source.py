"""A TFDS/RLDS directory: its declared types, its files, and the records of its episodes."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.json_format import ParseError

from converters.rlds.rlds_location import find_version
from converters.rlds.tfrecord import scan_records
from pipeline.bundled import local_path
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import open_path, parse_json, read_text

UNKNOWN = -1
"""A size of an image that `features.json` does not declare."""
STEPS = "steps/"
"""Prefix of every key that has one value per step."""
_MAX_SHARDS = 99_999
"""Files of a split: their numbers have five digits."""
_MAX_VALUES = 2**31
"""Most values of one step's tensor: more do not fit in a record."""
_MAX_VIEWS = 64
"""Most images of a sequence: no robot has more cameras."""
# What tensorflow-datasets' parsers raise for files of another form.
_TFDS_ERRORS = (
    ParseError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RecursionError,
    MemoryError,
    OverflowError,
)


@dataclasses.dataclass(frozen=True)
class SourceKey:
    """A leaf of `features.json`, or one view of a sequence of images."""

    key: str
    """Its path, such as `steps/observation/state`; of a view `steps/observation/images[0]`."""
    kind: Literal["tensor", "image", "text", "other"]
    """What it holds; `other` is what only a mapping's `ignore` can take: ragged, nested, encoded
    and texts of more than one value."""
    shape: tuple[int, ...]
    """Shape of one value."""
    dtype: str
    """The declared dtype: of an image's pixels, `utf8` for a text, in words for `other`."""
    lengths: tuple[int, ...] = ()
    """Lengths of the fixed sequences that hold the value, the outermost first; they are part of
    the shape of a tensor."""
    view: int | None = None
    """The place of an image in its sequence."""
    has_images: bool = False
    """Whether it is a camera that cannot be stored: for `other`, whose shape is not known."""

    @property
    def stored(self) -> str:
        """The key that it has in a record; one for all views of a sequence."""
        return self.key if self.view is None else self.key.removesuffix(f"[{self.view}]")


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """One TFRecord file."""

    path: epath.Path
    """Path of the file."""
    num_records: int
    """Episodes that `dataset_info.json` promises."""
    start: int = 0
    """The first of them that is read."""
    stop: int | None = None
    """The first after `start` that is not read any more; None: all are."""

    @property
    def num_episodes(self) -> int:
        """Episodes that are read."""
        return (self.num_records if self.stop is None else self.stop) - self.start


@dataclasses.dataclass(frozen=True)
class RldsSource:
    """An RLDS directory whose specification has been read."""

    directory: epath.Path
    """The folder that holds `features.json`."""
    name: str
    """The name in `dataset_info.json`; published LIBERO sets are renamed on disk, not inside."""
    version: str
    """The version in `dataset_info.json`."""
    split: str
    """The split that is read."""
    keys: Mapping[str, SourceKey]
    """Source keys by name, in alphabetical order."""
    shards: tuple[SourceShard, ...]
    """Shards in the order of their episodes."""
    selection: str = ""
    """The range of episodes that is read, such as `0:100 of 432`; empty where all are."""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What else the provenance of a dataset made from it says."""

    def records(self, shard: SourceShard) -> Iterator[tuple[str, bytes]]:
        """Yields (place for errors, serialized episode) for every record that is read of a shard.

        Raises:
          DataError: A corrupt file, or one with another number of records than declared.
        """
        for _, where, record in self.scan(shard):
            if isinstance(record, DataError):
                raise record
            yield where, record
            # Otherwise two episodes are in memory at once.
            del record  # before the next one is read

    def scan(self, shard: SourceShard) -> Iterator[tuple[int, str, bytes | DataError]]:
        """Yields (number in its file, place for errors, episode) as `records`, behind bad data too.

        In the place of a record whose bytes are corrupt stands the error.

        Raises:
          DataError: Where the rest of the file cannot be read, or it has another number of records
            than declared.
        """
        number = shard.start
        stored = scan_records(shard.path, skip=shard.start)
        # Not one more than is read: what lies after it may be corrupt.
        # The selection ends before the file does.
        wanted = stored if shard.stop is None else itertools.islice(stored, shard.num_episodes)
        for record in wanted:
            yield number, f"{shard.path}, episode {number}", record
            del record  # before the next one is read
            number += 1
        # The file's own number of records, against what dataset_info.json promises.
        if number != shard.start + shard.num_episodes:
            raise DataError(
                where=str(shard.path),
                expected=f"{shard.num_records} episodes, as dataset_info.json says",
                found=f"{number}" if number > shard.start or not number else f"at most {number}",
                remedy="One of the two is not what was written: fetch both files again.",
            )

    def select(self, start: int, stop: int) -> "RldsSource":
        """The episodes from `start` to before `stop`, counted over all shards.

        Raises:
          UserError: Where there are no such episodes.
        """
        if self.selection:
            raise ValueError(f"these are already the episodes {self.selection}")
        total = sum(shard.num_episodes for shard in self.shards)
        if not 0 <= start < stop <= total:
            raise UserError(
                where=f"{self.directory}, split {self.split}",
                expected=f"a range A:B of episodes with 0 <= A < B <= {total}",
                found=f"{start}:{stop}",
                remedy="Name another one with --episodes.",
            )
        if (start, stop) == (0, total):
            return self
        shards = []
        first = 0
        for shard in self.shards:
            # The part of the selection that lies in this file.
            inside = range(max(start - first, 0), min(stop - first, shard.num_records))
            if inside:
                # None, so that the end of the file is checked as well.
                stop_here = None if inside.stop == shard.num_records else inside.stop
                shards.append(dataclasses.replace(shard, start=inside.start, stop=stop_here))
            first += shard.num_records
        selection = "" if (start, stop) == (0, total) else f"{start}:{stop} of {total}"
        return dataclasses.replace(self, shards=tuple(shards), selection=selection)


def open_source(path: str, split: str = "train") -> RldsSource:
    """Opens an RLDS directory, `.../name/1.0.0` or `.../name` where it has one version.

    Images that are declared without a size have that of the first one that can be read.

    Raises:
      DataError: Where there is none, its files are not readable, or the split is not there.
      SchemaError: Where `features.json` declares what this project cannot store.
    """
    directory = find_version(open_path(local_path(path)))
    # Read before tensorflow-datasets does, for a message that names the file.
    _read_json(directory / "features.json")
    _check_num_shards(directory / "dataset_info.json")
    # It raises whatever its parsers raise.
    with _named_as_broken(directory):
        info = tfds.builder_from_directory(directory).info
    source = RldsSource(
        directory=directory,
        name=info.name,
        version=str(info.version),
        split=split,
        keys=_declared_keys(info.features, str(directory / "features.json")),
        shards=_declared_shards(info, split, directory),
    )
    # Only now, because it reads the first records.
    from converters.rlds.image_sizes import with_image_sizes  # noqa: PLC0415  (it reads records)

    return with_image_sizes(source)


def _declared_shards(info: Any, split: str, directory: epath.Path) -> tuple[SourceShard, ...]:
    where = str(directory / "dataset_info.json")
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DataError(
            where=where,
            expected="files in TFRecord",
            found=str(info.file_format.value),
            remedy="Prepare the dataset again with file_format='tfrecord'.",
        )
    if split not in info.splits or not sum(info.splits[split].shard_lengths):
        raise DataError(
            where=where,
            expected=f"a split {split} with episodes",
            found="; ".join(f"{s.name} of {sum(s.shard_lengths)}" for s in info.splits.values())
            or "none",
            remedy="Name another split with --split, or fetch the directory again.",
        )
    with _named_as_broken(directory):
        paths = info.splits[split].filepaths
    lengths = info.splits[split].shard_lengths
    return tuple(
        SourceShard(epath.Path(path), length) for path, length in zip(paths, lengths, strict=True)
    )


def _declared_keys(features: Any, where: str) -> dict[str, SourceKey]:
    if not isinstance(features, tfds.features.FeaturesDict) or "steps" not in features:
        raise mismatch(where, "an RLDS feature dictionary with `steps`", _one_line(features))
    leaves = dict(_leaves(features, ""))
    if not any(key.startswith(STEPS) for key in leaves):
        raise _steps_as_a_value(where, features["steps"])
    # In alphabetical order, which does not depend on how the features were declared.
    keys = [part for key in sorted(leaves) for part in _source_keys(key, leaves[key])]
    return {key.key: _bounded(key) for key in keys}


def _steps_as_a_value(where: str, steps: Any) -> SchemaError:
    """The error for `steps` that are not declared by their keys."""
    is_bytes = np.dtype(getattr(steps, "np_dtype", None) or "f4").kind in "OSU"
    return SchemaError(
        where=f"{where}, steps",
        expected="a dataset or sequence of a dictionary with the keys of a step",
        found=_one_line(steps) + (", bytes such as serialized Examples" if is_bytes else ""),
        remedy="Parse the steps at the source, and write them as tfds.features.Dataset with the "
        "features of a step.",
    )


def _bounded(key: SourceKey) -> SourceKey:
    """A key that can be stored only where one step of it fits in a record."""
    if key.kind not in ("tensor", "image") or math.prod(key.shape) < _MAX_VALUES:
        return key
    words = f"{key.dtype}{list(key.shape)}, of more values than a record holds"
    return dataclasses.replace(key, kind="other", shape=(), dtype=words)


def _leaves(
    feature: tfds.features.FeatureConnector, path: str
) -> Iterator[tuple[str, tfds.features.FeatureConnector]]:
    """Every (path, feature) below a feature; `steps` is the one sequence that is entered.

    It is a Dataset or, with the same bytes, a Sequence, whose class the former derives from.
    """
    if isinstance(feature, tfds.features.Sequence) and path == "steps":
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, child in feature.items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    else:
        yield path, feature


def _source_keys(key: str, feature: Any) -> list[SourceKey]:
    """The declared type of a leaf of tensorflow-datasets; of a sequence of images, of each."""
    lengths, inner = _unwrapped(feature)
    found = _source_key(key, inner)
    if not lengths:
        return [found]
    num_values = math.prod(lengths)
    # -1 is a length that may be any.
    if min(lengths) < 1 or found.kind == "other":
        words = f"{_one_line(feature)} of any length" if -1 in lengths else _one_line(feature)
        has_images = found.has_images or found.kind == "image"
        return [SourceKey(key, "other", (), words, has_images=has_images)]
    if found.kind == "image" and num_values > _MAX_VIEWS:
        words = f"{_one_line(feature)} of more than {_MAX_VIEWS} images"
        return [SourceKey(key, "other", (), words, has_images=True)]
    if found.kind == "image":
        views = [f"{key}[{view}]" for view in range(num_values)]
        return [
            dataclasses.replace(found, key=name, lengths=lengths, view=view)
            for view, name in enumerate(views)
        ]
    if found.kind == "tensor":
        return [dataclasses.replace(found, shape=(*lengths, *found.shape), lengths=lengths)]
    return [_texts(dataclasses.replace(found, lengths=lengths), num_values, feature)]


def _unwrapped(feature: Any) -> tuple[tuple[int, ...], Any]:
    """(lengths, feature) inside nested sequences; a length is -1 where it may be any."""
    # A Video derives from Sequence, and is no sequence of its own here.
    if type(feature) is not tfds.features.Sequence:  # not those that derive from it, as Video does
        return (), feature
    lengths, inner = _unwrapped(feature.feature)
    return (feature.to_json_content().length, *lengths), inner


def _source_key(key: str, feature: Any) -> SourceKey:
    """The declared type of a leaf that is no sequence."""
    shape: Any = feature.shape
    np_dtype: Any = feature.np_dtype  # of a nested feature a dict, which numpy refuses
    if isinstance(feature, tfds.features.Text):
        return SourceKey(key, "text", (), "utf8")
    if isinstance(feature, tfds.features.Image) and shape[-1] is not None:
        size = tuple(length or UNKNOWN for length in shape)
        return SourceKey(key, "image", size, np.dtype(np_dtype).name)
    encoding = _encoding(feature)
    dense = isinstance(feature, tfds.features.Tensor) and None not in shape
    if not dense or encoding != "none":
        words = _one_line(feature)
        words += f" with the encoding {encoding}" if encoding != "none" else ""
        return SourceKey(key, "other", (), words, has_images=_has_images(feature))
    dtype = np.dtype(np_dtype)
    # "O", "S" and "U" are texts.
    if dtype.kind not in "OSU":
        return SourceKey(key, "tensor", tuple(shape), dtype.name)
    return _texts(SourceKey(key, "text", (), "utf8"), math.prod(shape), feature)


def _texts(key: SourceKey, num_values: int, feature: Any) -> SourceKey:
    """A text, also where it is a tensor or sequence of one; several cannot be read."""
    if num_values == 1:
        return key
    return SourceKey(key.key, "other", (), f"{_one_line(feature)}, of texts")


def _has_images(feature: Any) -> bool:
    """Whether any part of a nested or encoded feature is a camera."""
    if isinstance(feature, tfds.features.Sequence):  # a Video is one
        return _has_images(feature.feature)
    if isinstance(feature, tfds.features.FeaturesDict):
        return any(map(_has_images, feature.values()))
    is_rgb = feature.shape[2:] == (3,) and np.dtype(feature.np_dtype) == np.uint8
    return isinstance(feature, tfds.features.Image) or is_rgb


def _encoding(feature: tfds.features.FeatureConnector) -> str:
    """How the values are packed; `none` is a plain list, as a class label's always are."""
    return getattr(feature.to_json_content(), "encoding", "") or "none"


def _check_num_shards(path: epath.Path) -> None:
    """Refuses splits of more files than have a name, before each of them is looked at."""
    # The JSON is somebody else's, so every level is checked.
    values = _read_json(path)
    splits = values.get("splits") if isinstance(values, dict) else None
    listed = [s for s in splits if isinstance(s, dict)] if isinstance(splits, list) else []
    lists = [split.get("shardLengths") for split in listed]
    largest = max((len(lengths) for lengths in lists if isinstance(lengths, list)), default=0)
    if largest > _MAX_SHARDS:
        raise DataError(
            where=str(path),
            expected=f"splits of at most {_MAX_SHARDS:,} files",
            found=f"{largest:,}",
            remedy="Write the dataset in fewer and larger files.",
        )


def _read_json(path: epath.Path) -> Any:
    expected = "a JSON file that tensorflow-datasets wrote"
    remedy = "Allow reading it, or fetch the directory again."
    text = read_text(path, expected=expected, remedy=remedy)
    return parse_json(text, where=str(path), expected=expected, remedy=remedy)


@contextlib.contextmanager
def _named_as_broken(directory: epath.Path) -> Iterator[None]:
    """Names the directory where tensorflow-datasets fails inside the block.

    It raises whatever its parsers raise: of protobuf for JSON of another form, a ValueError for a
    feature class or version that it does not know, an ImportError for one that needs TensorFlow,
    an OverflowError for a number that no shape can have.
    """
    try:
        yield
    except _TFDS_ERRORS as error:
        raise DataError(
            where=str(directory),
            expected="a features.json and a dataset_info.json that tensorflow-datasets reads",
            found=f"{type(error).__name__}: {_one_line(error)}",
            remedy="Fetch the directory again, or write it with tensorflow-datasets' own features.",
        ) from error


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def mismatch(where: str, expected: str, found: str) -> SchemaError:
    """Records and declarations that differ."""
    return SchemaError(
        where=where,
        expected=expected,
        found=found,
        remedy="The records must be what features.json declares: write the source again.",
    )
