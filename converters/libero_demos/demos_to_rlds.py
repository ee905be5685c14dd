"""An RLDS directory from serialized episodes, with the features of the published LIBERO sets."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from converters.rlds.tfrecord import frame, read_records
from pipeline.files import sync

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
    directory: pathlib.Path, name: str, episodes: Sequence[pathlib.Path], image_size: int
) -> None:
    """Writes the folder of a version, file by file and what describes them last.

    Args:
      directory: Is made; it must not exist.
      name: Name of the dataset.
      episodes: TFRecord files of one episode each, in their order.
      image_size: Height and width of the images.
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
    (directory / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    for path in (*directory.iterdir(), directory):
        sync(path)
