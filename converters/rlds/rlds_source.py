"""A TFDS/RLDS directory: its declared types, its files, and the records of its episodes."""

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.json_format import ParseError

from converters.rlds.declared_keys import UNKNOWN, declared_keys, one_line
from converters.rlds.example_parsing import parse_episode
from converters.rlds.rlds_files import OWN_FILE, check_files, find_version
from converters.rlds.tfrecord import scan_records
from converters.sources.reading import readable_episodes, select_shards
from converters.sources.recording_notes import read_recording_notes
from converters.sources.source import Episode, Source, SourceEpisode, SourceKey, SourceShard
from pipeline.data.images import image_size
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import parse_json, read_text

_MAX_SHARDS = 99_999
"""Files of a split: their numbers have five digits."""
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

    format = "RLDS"

    @property
    def declaration(self) -> str:
        """The `features.json`."""
        return str(self.directory / "features.json")

    def check_files(self) -> None:
        """Checks that the files of all episodes that are read are there.

        Raises:
          DataError: Where some or all are missing; with what is there, and how to convert that.
        """
        check_files(self)

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        """Yields the episodes of a file, those behind a record whose bytes are corrupt too.

        Raises:
          DataError: Where the rest of the file cannot be read, or it has another number of records
            than declared.
        """
        (path,) = shard.paths
        number = shard.start
        stored = scan_records(path, skip=shard.start)
        # Not one more than is read: what lies after it may be corrupt.
        # The selection ends before the file does.
        selected = stored if shard.stop is None else itertools.islice(stored, shard.num_episodes)
        for record in selected:
            yield self._episode(record, number, f"{path}, episode {number}", wanted)
            del record  # before the next one is read
            number += 1
        # The file's own number of records, against what dataset_info.json promises.
        if number != shard.start + shard.num_episodes:
            raise DataError(
                where=str(path),
                expected=f"{shard.num_records} episodes, as dataset_info.json says",
                found=f"{number}" if number > shard.start or not number else f"at most {number}",
                remedy="One of the two is not what was written: fetch both files again.",
            )

    def _episode(
        self, record: bytes | DataError, number: int, where: str, wanted: Collection[str] | None
    ) -> SourceEpisode:
        if isinstance(record, DataError):
            return SourceEpisode(number, where, 0, record)
        try:
            values = parse_episode(record, self.keys, where, wanted)
        except (DataError, SchemaError) as error:
            return SourceEpisode(number, where, len(record), error)
        return SourceEpisode(number, where, len(record), values)

    def select(self, start: int, stop: int) -> "RldsSource":
        """The episodes from `start` to before `stop`, counted over all shards.

        Raises:
          UserError: Where there are no such episodes.
        """
        shards, selection = select_shards(self, start, stop)
        return dataclasses.replace(self, shards=shards, selection=selection)


def open_rlds(path: epath.Path, split: str | None = None) -> RldsSource:
    """Opens an RLDS directory, `.../name/1.0.0` or `.../name` where it has one version.

    Images that are declared without a size have that of the first one that can be read.

    Raises:
      DataError: Where there is none, its files are not readable, or the split is not there.
      SchemaError: Where `features.json` declares what this project cannot store.
    """
    directory = find_version(path)
    split = split or "train"
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
        keys=declared_keys(info.features, str(directory / "features.json")),
        shards=_declared_shards(info, split, directory),
        notes=read_recording_notes(directory / OWN_FILE),
    )
    # Only now, because it reads the first records.
    return dataclasses.replace(source, keys=sized_keys(source))


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
        SourceShard(epath.Path(path).name, str(path), (epath.Path(path),), length)
        for path, length in zip(paths, lengths, strict=True)
    )


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
            found=f"{type(error).__name__}: {one_line(error)}",
            remedy="Fetch the directory again, or write it with tensorflow-datasets' own features.",
        ) from error


def sized_keys(source: Source) -> Mapping[str, SourceKey]:
    """The keys of a source with a size for every image; the conversion checks that all have it.

    A key none of whose images can be read becomes one of kind `other`.
    """
    # Only these need a read of the first episode.
    unsized = [key for key in source.keys.values() if UNKNOWN in key.shape]
    if not unsized:
        return source.keys
    found: dict[str, SourceKey] = {}
    for where, episode in readable_episodes(source, {key.key for key in unsized}):
        try:
            found = {key.key: _sized(key, episode, where) for key in unsized}
            break
        except UserError:  # the conversion reports an image that cannot be read
            continue
    for key in unsized:
        words = f"Image of {key.dtype} without a size, none of whose records can be read"
        unread = dataclasses.replace(key, kind="other", shape=(), dtype=words, has_images=True)
        found.setdefault(key.key, unread)
    return {**source.keys, **found}


def _sized(key: SourceKey, episode: Episode, where: str) -> SourceKey:
    encoded = episode[key.key][0]
    assert isinstance(encoded, bytes | memoryview)
    size = image_size(encoded, f"{where}, {key.key}")
    return dataclasses.replace(key, shape=(*size, key.shape[-1]))
