"""Whether the files of a LeRobot dataset are there, and hold what its metadata declares."""

from collections.abc import Iterable, Sequence

from converters.lerobot.column_values import check_schema
from converters.lerobot.episode_places import EpisodePlace
from converters.lerobot.lerobot_dataset import LeRobotDataset
from converters.lerobot.parquet_rows import schema_of
from converters.lerobot.video_frames import VideoFrames
from pipeline.errors import DataError

METADATA = (
    "meta/info.json",
    "meta/tasks.*",
    "meta/subtasks.*",
    "meta/episodes.jsonl",
    "meta/episodes/*.parquet",
)
"""The files in `meta` that opening a dataset reads, as globs."""
_MAX_NAMES = 5
"""Files that an error lists."""
_MAX_HEADERS = 32
"""Files of each kind whose headers are read before a conversion; the others when their turn is."""


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
