"""A LeRobot directory as the source of a conversion."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from etils import epath

from converters.lerobot.column_values import check_schema
from converters.lerobot.episode_places import EpisodePlace
from converters.lerobot.episode_reader import EpisodeReader
from converters.lerobot.lerobot_dataset import LeRobotDataset, open_dataset
from converters.lerobot.lerobot_features import codec_words
from converters.lerobot.lerobot_info import INFO, OWN_FILE
from converters.lerobot.parquet_rows import schema_of
from converters.lerobot.video_frames import VideoFrames
from converters.sources.image_encoding import IMAGE_QUALITY, QUALITY_NOTE, check_quality
from converters.sources.reading import select_shards
from converters.sources.source import SourceEpisode, SourceKey, SourceShard
from pipeline.bundled import local_path
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import json_checksum, open_path
from pipeline.hub.hub_address import DATASETS, without_revision
from pipeline.hub.hub_files import fetch_matching

METADATA = (
    INFO,
    OWN_FILE,
    "meta/tasks.*",
    "meta/subtasks.*",
    "meta/episodes.jsonl",
    "meta/episodes/*.parquet",
    "meta/octograin.toml",
)
"""The files in `meta` that opening a dataset, or finding its mapping, reads, as globs."""
_MAX_NAMES = 5
"""Files that an error lists."""
_MAX_HEADERS = 32
"""Files of each kind whose headers are read before a conversion; the others when their turn is."""
_SHARD_STEPS = 2_000
"""Steps of a shard, up to 1,000 shards: a minute of work with three cameras of 480x640."""
_MOST_SHARDS = 1_000


@dataclasses.dataclass(frozen=True)
class LeRobotSource:
    """The episodes of a LeRobot dataset, or a range of them.

    A shard is a range of episodes, whatever files they lie in, so that several workers share a
    dataset that is one file.
    """

    dataset: LeRobotDataset
    """What was opened."""
    keys: Mapping[str, SourceKey]
    """Source keys by name, in alphabetical order."""
    shards: tuple[SourceShard, ...]
    """Shards in the order of their episodes."""
    first_episodes: Mapping[str, int]
    """First episode of each shard, those that are not read included, by its name."""
    selection: str = ""
    """The range of episodes that is read; empty where all are."""

    @property
    def format(self) -> str:
        """The format with its version."""
        return f"LeRobot {self.dataset.info.version}"

    @property
    def directory(self) -> epath.Path:
        """The folder that holds `meta`."""
        return self.dataset.directory

    @property
    def declaration(self) -> str:
        """The file that declares the features."""
        return str(self.dataset.info.path)

    @property
    def name(self) -> str:
        """The name of the folder, or on the hub of the repository: the files hold none."""
        if self.dataset.hub:
            return without_revision(self.dataset.hub).rpartition("/")[2]
        return self.directory.resolve().name

    @property
    def version(self) -> str:
        """Empty: the files hold none but that of the format."""
        return ""

    @property
    def split(self) -> str:
        """Empty: every set is read whole, as LeRobot does."""
        return ""

    @property
    def notes(self) -> Mapping[str, str]:
        """The recording, the format, the robot, and what the images were and became."""
        info = self.dataset.info
        notes = {**self.dataset.recording, "format": self.format, "fps": f"{info.fps:g}"}
        if self.dataset.hub:
            notes["address"] = self.dataset.hub
        if info.robot_type:
            notes["robot_type"] = info.robot_type
        for feature in self.dataset.features.values():
            if feature.storage == "video":
                notes[f"video {feature.name}"] = codec_words(info.features[feature.name])
        if any(feature.storage == "video" for feature in self.dataset.features.values()):
            notes[QUALITY_NOTE] = str(self.dataset.image_quality)
        return notes

    def check_files(self) -> None:
        """Checks that all files are there, and the headers of the first ones.

        Files on the hub are checked when they are fetched, each by the worker that reads it.

        Raises:
          DataError: Files are missing, or one is corrupt.
          SchemaError: One does not hold what `meta/info.json` declares.
        """
        if self.dataset.hub:
            return
        places = [place for shard in self.shards for place in self._read_places(shard)]
        check_present(self.dataset, places)
        check_headers(self.dataset, places)

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        """Yields the episodes of a shard; in the place of one that cannot be read, why."""
        reader = EpisodeReader(self.dataset, wanted)
        try:
            for number, place in enumerate(self._read_places(shard), shard.start):
                where = f"{self.directory / place.data}, episode {place.index}"
                try:
                    values = reader.read(place, where)
                except (DataError, SchemaError) as error:
                    values = error
                yield SourceEpisode(number, where, reader.num_bytes, values)
                # Otherwise two episodes are in memory at once.
                del values
        finally:
            reader.close()

    def select(self, start: int, stop: int) -> "LeRobotSource":
        """The episodes from `start` to before `stop`, counted over all shards.

        Raises:
          UserError: Where there are no such episodes.
        """
        shards, selection = select_shards(self, start, stop)
        # A part of a shard needs the files of its own episodes alone.
        parts = tuple(
            dataclasses.replace(shard, paths=_paths(self.directory, self._read_places(shard)))
            for shard in shards
        )
        return dataclasses.replace(self, shards=parts, selection=selection)

    def _read_places(self, shard: SourceShard) -> tuple[EpisodePlace, ...]:
        """The places of the episodes of a shard that are read."""
        start = self.first_episodes[shard.name] + shard.start
        return self.dataset.places[start : start + shard.num_episodes]


def open_lerobot(
    path: epath.PathLike, split: str | None = None, image_quality: int = IMAGE_QUALITY
) -> LeRobotSource:
    """Opens a LeRobot directory: the folder that holds `meta`.

    Of a dataset on the hub only `meta` is fetched now; data files, and the videos of those cameras
    that a mapping uses, when they are read.

    Args:
      path: The folder; may be gs:// or s3://, or `hf://datasets/owner/name[@revision]`.
      split: None, or `train`, which is the name that LeRobot gives to all episodes.
      image_quality: Quality of the JPEG images that frames of videos become.

    Raises:
      DataError: There is none, its metadata is corrupt or contradicts itself, or it is of a version
        that is not read.
      UserError: Another split is named, or a quality that JPEG does not have.
    """
    if split not in (None, "", "train"):
        raise UserError(
            where=str(path),
            expected="no split: a LeRobot dataset is read whole",
            found=split,
            remedy="Leave --split out; --episodes names a range of episodes.",
        )
    check_quality(image_quality, str(path))
    if str(path).startswith(DATASETS):
        folder, address = fetch_matching(str(path), "meta", METADATA)
        dataset = open_dataset(epath.Path(folder), image_quality, address)
    else:
        dataset = open_dataset(open_path(local_path(str(path))), image_quality)
    ranges = shard_ranges([place.length for place in dataset.places])
    info = dataset.info
    # What in `meta` decides what the steps of any episode become.
    declared = json_checksum([info.fps, info.features, dataset.tasks, dataset.subtasks])
    shards = {}
    for start, stop in ranges:
        places = dataset.places[start:stop]
        name = f"episodes-{start:06d}-{stop:06d}"
        shards[start] = SourceShard(
            name=name,
            where=f"{dataset.directory}, episodes {start} to {stop - 1}",
            paths=_paths(dataset.directory, places),
            num_records=stop - start,
            digest=json_checksum([declared, *map(vars, places)]),
        )
    first_episodes = {shard.name: start for start, shard in shards.items()}
    return LeRobotSource(dataset, dataset.keys, tuple(shards.values()), first_episodes)


def shard_ranges(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(first, behind the last) of the episodes of each shard.

    A shard ends with the episode that fills it. It depends on the lengths alone, so the same
    dataset gives the same shards for any number of workers.
    """
    enough = max(_SHARD_STEPS, sum(lengths) // _MOST_SHARDS)
    ranges = []
    start = num_steps = 0
    for index, length in enumerate(lengths):
        num_steps += length
        if num_steps >= enough or index == len(lengths) - 1:
            ranges.append((start, index + 1))
            start, num_steps = index + 1, 0
    return ranges


def _paths(directory: epath.Path, places: Sequence[EpisodePlace]) -> tuple[epath.Path, ...]:
    """The files of some episodes, each once."""
    files = dict.fromkeys(file for place in places for file in place.files)
    return tuple(directory / file for file in files)


def check_present(dataset: LeRobotDataset, places: Iterable[EpisodePlace]) -> None:
    """Checks that the files of some episodes are there.

    Raises:
      DataError: Where some or all are missing.
    """
    files = list(dict.fromkeys(file for place in places for file in place.files))
    # One listing per folder, instead of a request for each of thousands of files.
    folders = {(dataset.directory / file).parent for file in files}
    present = {path for folder in folders if folder.exists() for path in folder.iterdir()}
    missing = [file for file in files if dataset.directory / file not in present]
    if not missing:
        return
    listed = ", ".join(missing[:_MAX_NAMES])
    more = f" and {len(missing) - _MAX_NAMES:,} more" if len(missing) > _MAX_NAMES else ""
    raise DataError(
        where=str(dataset.directory),
        expected=f"{len(files):,} files of episodes, as meta/ says",
        found=f"no {listed}{more}",
        remedy="Fetch the missing files, or name the episodes that are there with --episodes.",
    )


def check_headers(dataset: LeRobotDataset, places: Sequence[EpisodePlace]) -> None:
    """Checks the types of the first data files, and size, rate and codec of the first videos.

    Raises:
      DataError: One is corrupt, or PyAV lacks its codec.
      SchemaError: One does not hold what the metadata declares.
    """
    for file in _first(place.data for place in places):
        path = dataset.directory / file
        check_schema(schema_of(path), dataset.features, str(path))
    for feature in dataset.features.values():
        if feature.storage == "video" and feature.key.kind == "image":
            for file in _first(place.videos[feature.name][0] for place in places):
                VideoFrames(dataset.directory / file, feature, dataset.info.fps).close()


def _first(files: Iterable[str]) -> list[str]:
    """The first files of an iterable, each once."""
    return list(dict.fromkeys(files))[:_MAX_HEADERS]
