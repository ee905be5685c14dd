"""A LeRobot directory as the source of a conversion."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

from etils import epath

from converters.lerobot.episode_places import EpisodePlace
from converters.lerobot.episode_reader import EpisodeReader
from converters.lerobot.lerobot_dataset import LeRobotDataset, open_dataset
from converters.lerobot.lerobot_features import codec_words
from converters.lerobot.lerobot_files import check_headers, check_present
from converters.sources.image_encoding import IMAGE_QUALITY
from converters.sources.source import SourceEpisode, SourceKey, SourceShard
from pipeline.bundled import local_path
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import open_path

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
        """The name of the folder: the files hold none."""
        return self.directory.resolve().name

    @property
    def version(self) -> str:
        """Empty: the files hold none but that of the format."""
        return ""

    @property
    def split(self) -> str:
        """Empty: every set is read whole, as LeRobot does."""
        return ""

    @functools.cached_property
    def keys(self) -> Mapping[str, SourceKey]:
        """Source keys by name, in alphabetical order."""
        return self.dataset.keys

    @property
    def notes(self) -> Mapping[str, str]:
        """The format, the robot, and what the images were and became."""
        info = self.dataset.info
        notes = {"format": self.format, "fps": f"{info.fps:g}"}
        if info.robot_type:
            notes["robot_type"] = info.robot_type
        for feature in self.dataset.features.values():
            if feature.storage == "video":
                notes[f"video {feature.name}"] = codec_words(info.features[feature.name])
        if any(feature.storage == "video" for feature in self.dataset.features.values()):
            notes["jpeg_quality"] = str(self.dataset.image_quality)
        return notes

    def check_files(self) -> None:
        """Checks that all files are there, and the headers of the first ones.

        Raises:
          DataError: Files are missing, or one is corrupt.
          SchemaError: One does not hold what `meta/info.json` declares.
        """
        places = [place for shard in self.shards for _, place in self._places(shard)]
        check_present(self.dataset, places)
        check_headers(self.dataset, places)

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        """Yields the episodes of a shard; in the place of one that cannot be read, why."""
        reader = EpisodeReader(self.dataset, wanted)
        try:
            for number, place in self._places(shard):
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
        if self.selection:
            raise ValueError(f"these are already the episodes {self.selection}")
        total = len(self.dataset.places)
        if not 0 <= start < stop <= total:
            raise UserError(
                where=str(self.directory),
                expected=f"a range A:B of episodes with 0 <= A < B <= {total}",
                found=f"{start}:{stop}",
                remedy="Name another one with --episodes.",
            )
        if (start, stop) == (0, total):
            return self
        shards = [
            self._part(shard, start, stop)
            for shard in self.shards
            if start < self._stop(shard) and self.first_episodes[shard.name] < stop
        ]
        return dataclasses.replace(
            self, shards=tuple(shards), selection=f"{start}:{stop} of {total}"
        )

    def _stop(self, shard: SourceShard) -> int:
        return self.first_episodes[shard.name] + shard.num_records

    def _part(self, shard: SourceShard, start: int, stop: int) -> SourceShard:
        """The part of a shard that lies in a range of episodes, with the files of that alone."""
        first = self.first_episodes[shard.name]
        inside = range(max(start - first, 0), min(stop - first, shard.num_records))
        part = dataclasses.replace(shard, start=inside.start, stop=inside.stop)
        places = [place for _, place in self._places(part)]
        return dataclasses.replace(part, paths=_paths(self.directory, places))

    def _places(self, shard: SourceShard) -> list[tuple[int, EpisodePlace]]:
        """(number in the shard, place) of each episode that is read."""
        first = self.first_episodes[shard.name]
        numbers = range(shard.start, shard.start + shard.num_episodes)
        return [(number, self.dataset.places[first + number]) for number in numbers]


def open_lerobot(path: epath.PathLike, image_quality: int = IMAGE_QUALITY) -> LeRobotSource:
    """Opens a LeRobot directory: the folder that holds `meta`.

    Args:
      path: The folder; may be gs:// or s3://.
      image_quality: Quality of the JPEG images that frames of videos become.

    Raises:
      DataError: There is none, its metadata is corrupt or contradicts itself, or it is of a version
        that is not read.
    """
    dataset = open_dataset(open_path(local_path(str(path))), image_quality)
    ranges = shard_ranges([place.length for place in dataset.places])
    shards = {}
    for start, stop in ranges:
        name = f"episodes-{start:06d}-{stop:06d}"
        shards[start] = SourceShard(
            name=name,
            where=f"{dataset.directory}, episodes {start} to {stop - 1}",
            paths=_paths(dataset.directory, dataset.places[start:stop]),
            num_records=stop - start,
        )
    first_episodes = {shard.name: start for start, shard in shards.items()}
    return LeRobotSource(dataset, tuple(shards.values()), first_episodes)


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
