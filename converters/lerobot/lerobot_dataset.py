"""A LeRobot directory whose metadata has been read."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from converters.lerobot.episode_places import EpisodePlace, episode_texts, read_places
from converters.lerobot.lerobot_features import (
    SUBTASK,
    SUBTASK_INDEX,
    TASK,
    LeRobotFeature,
    declared_features,
)
from converters.lerobot.lerobot_info import OWN_FILE, LeRobotInfo, read_info
from converters.lerobot.task_texts import read_subtasks, read_tasks
from converters.sources.image_encoding import IMAGE_QUALITY
from converters.sources.recording_notes import read_recording_notes
from converters.sources.source import SourceKey
from pipeline.hub.hub_files import fetch


@dataclasses.dataclass(frozen=True)
class LeRobotDataset:
    """The declaration of a dataset, and the places of its episodes."""

    directory: epath.Path
    """The folder that holds `meta`, `data` and `videos`."""
    info: LeRobotInfo
    features: Mapping[str, LeRobotFeature]
    """Declared features by source key."""
    places: tuple[EpisodePlace, ...]
    """Places of the episodes, in order."""
    tasks: Mapping[int, str]
    """Texts of the tasks by number."""
    subtasks: Mapping[int, str] | None
    """Texts of the subtasks by number; None where the dataset has none."""
    texts: tuple[str, ...] = ()
    """Keys of the texts that each episode has in `meta/episodes`."""
    recording: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What an export notes of the recording."""
    image_quality: int = IMAGE_QUALITY
    """Quality of the JPEG images that frames of videos become."""
    hub: str = ""
    """The address on the hub, with its commit, of a dataset whose files are fetched when they are
    read; empty for one that is on a disk or in an object store."""

    def at_hand(self, file: str) -> epath.Path:
        """The path of a file below the directory, which is fetched where it has to be.

        Raises:
          DataError: It cannot be fetched.
        """
        return epath.Path(fetch(f"{self.hub}/{file}")) if self.hub else self.directory / file

    @property
    def keys(self) -> dict[str, SourceKey]:
        """The keys that it offers, in alphabetical order: its features, and texts."""
        found = {key: feature.key for key, feature in self.features.items()}
        found[TASK] = SourceKey(TASK, "text", (), "utf8")
        has_index = any(feature.name == SUBTASK_INDEX for feature in self.features.values())
        if has_index and self.subtasks is not None:
            found[SUBTASK] = SourceKey(SUBTASK, "text", (), "utf8")
        found |= {key: SourceKey(key, "text", (), "utf8") for key in self.texts}
        return dict(sorted(found.items()))


def open_dataset(
    directory: epath.Path, image_quality: int = IMAGE_QUALITY, hub: str = ""
) -> LeRobotDataset:
    """Reads the metadata of a directory.

    Args:
      directory: The folder that holds `meta`.
      image_quality: Quality of the JPEG images that frames of videos become.
      hub: Where files that are missing are fetched from.

    Raises:
      DataError: It is missing, corrupt, contradicts itself, or is of a version that is not read.
    """
    info = read_info(directory)
    features = declared_features(info)
    videos = [feature.name for feature in features.values() if not feature.is_column]
    texts = episode_texts(info, directory)
    return LeRobotDataset(
        directory=directory,
        info=info,
        features=features,
        places=read_places(info, directory, videos, texts),
        tasks=read_tasks(info, directory),
        subtasks=read_subtasks(directory),
        texts=texts,
        recording=read_recording_notes(directory / OWN_FILE),
        image_quality=image_quality,
        hub=hub,
    )
