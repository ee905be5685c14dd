"""The job: the expert's episodes one by one, then as RLDS, then as a dataset.

Each episode is a file of its own in a folder beside the destination until all are there, so that a
job that is killed loses no more than those under way. Then the RLDS is converted as any other.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from converters.job import workers
from converters.job.convert import convert
from converters.mapping.mapping_registry import registered
from converters.mapping.standardize import SourceMapping
from converters.rlds.rlds_files import OWN_FILE
from converters.rlds.rlds_source import open_rlds
from converters.rlds.tfrecord import frame, read_records
from converters.sources.recording_notes import PROVENANCE
from examples.scripted_expert.episodes import EpisodeFiles
from pipeline.data.manifest import WORK, Manifest
from pipeline.errors import UserError
from pipeline.files import dump_json, sync, temporary_path, writing
from train.evaluate.libero.suites import INITIAL_STATES, Trial, to_text

NO_OP_THRESHOLD = 1e-4
"""Threshold of OpenVLA's filter, which made the published sets."""

_PLACED = "rlds"
"""Marks, beside the episodes, that the folder of the RLDS is this job's."""


@dataclasses.dataclass(frozen=True)
class Destination:
    """The dataset to which a collection is written."""

    dataset: pathlib.Path
    """Dataset directory."""
    rlds: pathlib.Path | None = None
    """Folder of the RLDS, which gets one of the version inside; None: none is kept."""
    name: str = "libero_expert"
    """Name of the dataset."""
    licence: str = registered("libero").licence
    """Licence of the data, as an SPDX identifier or in words."""
    overwrite: bool = False
    """Whether a dataset that stands there is replaced."""

    @property
    def folder(self) -> pathlib.Path:
        """Folder of the episodes until all are collected."""
        absolute = self.dataset.absolute()
        # Hidden and beside the dataset: on the same disk, for the renames.
        return absolute.with_name(f".{absolute.name}.episodes")


def collect(
    files: EpisodeFiles,
    destination: Destination,
    num_workers: int = 1,
    on_progress: workers.OnProgress = lambda num_episodes, num_bytes: None,
) -> Manifest:
    """Makes all episodes and writes them as a dataset; what an earlier run made is not made again.

    Raises:
      UserError: A destination that is in use, episodes of other settings, a task that the expert
        does not have, or no episode that succeeded.
    """
    _check_free(destination)
    with files.claimed():
        # What an earlier run made, or failed at, is not tried again.
        pending = files.pending()
        on_progress(len(files.trials) - len(pending), 0)
        workers.run(files.make, pending, min(num_workers, len(pending)) or 1, on_progress)
        made = files.made()
        if not made:
            raise UserError(
                where="the expert",
                expected="an episode that reaches the goal",
                found=f"none of {len(files.trials)}",
                remedy=f"Lower --noise or name other tasks, and remove {files.folder}.",
            )
        source = _placed_rlds(files, destination, made)
        # Converted like any other source, with all its checks.
        manifest = convert(
            open_rlds(epath.Path(source)),
            destination.dataset,
            mapping(destination.licence),
            overwrite=destination.overwrite,
        )
    # Only after the dataset is complete.
    shutil.rmtree(files.folder)
    return manifest


def mapping(licence: str) -> SourceMapping:
    """That of the published sets; steps without motion are left out by the rule that made them."""
    conventions = dataclasses.replace(
        registered("libero").conventions,
        no_ops="removed_at_conversion",
        no_op_threshold=NO_OP_THRESHOLD,
    )
    # Collected sets have no tokens.
    features = tuple(feature for feature in registered("libero").features if not feature.optional)
    return dataclasses.replace(
        registered("libero"),
        features=features,
        conventions=conventions,
        licence=licence,
        column_licences={},
    )


def notes(files: EpisodeFiles, made: Collection[Trial]) -> dict[str, str]:
    """What the manifest says of the episodes: from which initial states, and how they arose."""
    settings = files.settings
    failed = [trial for trial in files.trials if trial not in made]
    noise = settings.noise
    return {
        "expert": "scripted, examples/scripted_expert",
        "simulator": settings.simulator,
        "noise": f"commands {noise.action:g}, waypoints {noise.waypoint_m:g} m; actions are the "
        "expert's, without it",
        "seed": f"{settings.seed}",
        INITIAL_STATES: to_text(made),
        "failed_initial_states": to_text(failed) or "none",
    }


# --- where it goes


def _check_free(destination: Destination) -> None:
    """Refuses, before hours of simulation, a place that is taken."""
    dataset = destination.dataset
    is_used = dataset.exists() and not dataset.is_dir()
    # A conversion of this job may lie there unfinished.
    is_used |= dataset.is_dir() and any(dataset.iterdir()) and not (dataset / WORK).exists()
    if is_used and not destination.overwrite:
        remedy = "Replace a dataset with --overwrite, or name another one."
        raise _in_use(dataset, "an empty or new directory", "one that is in use", remedy)
    folder = destination.rlds
    if folder is not None and folder.exists() and not (destination.folder / _PLACED).exists():
        remedy = "Name another folder with --rlds."
        raise _in_use(folder, "a new folder", "one that exists", remedy)


def _placed_rlds(
    files: EpisodeFiles, destination: Destination, made: Mapping[Trial, pathlib.Path]
) -> pathlib.Path:
    """The folder of the RLDS, which appears whole; one that an earlier run placed stays."""
    folder = destination.rlds or files.folder / "kept"
    if destination.rlds is None:
        # In the job's own folder it is made again: it may be of a killed run.
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        with writing(folder):
            (files.folder / _PLACED).touch()  # from now on it is this job's
            temporary = temporary_path(folder.absolute())
            side = files.settings.image_size
            said = notes(files, made)
            try:
                write_rlds(temporary / VERSION, destination.name, tuple(made.values()), side, said)
                temporary.replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder / VERSION


def _in_use(path: pathlib.Path, expected: str, found: str, remedy: str) -> UserError:
    return UserError(where=str(path), expected=expected, found=found, remedy=remedy)


# --- the RLDS

VERSION = "1.0.0"
_EPISODES_A_FILE = 32
_SPLIT = "train"


def features(image_size: int) -> tfds.features.FeaturesDict:
    """The published sets' features, with square images of some size."""

    def image() -> Any:
        return tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg")

    observation = {
        "image": image(),
        "wrist_image": image(),
        "state": tfds.features.Tensor(shape=(8,), dtype=np.float32),
        "joint_state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
    }
    steps = {
        "observation": observation,
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
        "language_instruction": tfds.features.Text(),
    }
    metadata = {"file_path": tfds.features.Text()}
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(steps), "episode_metadata": metadata}
    )


def write_rlds(
    directory: pathlib.Path,
    name: str,
    episodes: Sequence[pathlib.Path],
    image_size: int,
    provenance: Mapping[str, str],
) -> None:
    """Writes the folder of a version, file by file and what describes them last.

    Args:
      directory: Is made; it must not exist.
      name: Name of the dataset.
      episodes: TFRecord files of one episode each, in their order.
      image_size: Height and width of the images.
      provenance: What a dataset made from it says of the recording.
    """
    directory.mkdir(parents=True)
    starts = range(0, len(episodes), _EPISODES_A_FILE)
    parts = [episodes[start : start + _EPISODES_A_FILE] for start in starts]
    num_bytes = 0
    for number, part in enumerate(parts):
        file = f"{name}-{_SPLIT}.tfrecord-{number:05d}-of-{len(parts):05d}"
        with (directory / file).open("wb") as target:
            for path in part:
                for episode in read_records(epath.Path(path)):
                    target.write(frame(episode))
                    num_bytes += len(episode)
    split = {
        "name": _SPLIT,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(len(part)) for part in parts],
        "numBytes": str(num_bytes),
    }
    info = {"name": name, "version": VERSION, "fileFormat": "tfrecord", "splits": [split]}
    # Descriptions last: a folder without them is no RLDS.
    features(image_size).save_config(str(directory))
    (directory / OWN_FILE).write_text(dump_json({PROVENANCE: dict(provenance)}), encoding="utf-8")
    (directory / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    for path in (*directory.iterdir(), directory):
        sync(path)
