"""A small RLDS directory, laid out like one of tensorflow-datasets, to be changed and corrupted."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import traverse_util
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters import edit
from converters.mapping.mapped_features import IMAGES, FeatureMapping
from converters.mapping.standardize import SourceMapping
from converters.rlds.tfrecord import frame
from converters.sources.open_source import open_source
from pipeline.data.conventions import Conventions

Values = np.ndarray | Sequence[Any]

FEATURES = {
    "steps/action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
    "steps/observation/image": tfds.features.Image(shape=(8, 8, 3), encoding_format="jpeg"),
    "steps/language_instruction": tfds.features.Text(),
    "episode_metadata/file_path": tfds.features.Text(),
}
MAPPING = SourceMapping(
    features=(
        FeatureMapping("action", "steps/action"),
        FeatureMapping("observation/image_primary", "steps/observation/image", IMAGES),
    ),
    conventions=Conventions("upright", "none", control_frequency_hz=10.0, no_ops="kept"),
    source_id="episode_metadata/file_path",
)


@dataclasses.dataclass(frozen=True)
class Toy:
    """What an RLDS directory declares and holds; a method that changes it returns another one."""

    features: Mapping[str, Any]
    """Declared, by source key."""
    episodes: tuple[Mapping[str, Values], ...]
    """Held, by source key; two episodes per shard."""
    mapping: SourceMapping = MAPPING
    """What it becomes."""

    def declaring(self, key: str, feature: Any) -> "Toy":
        """Another with one more feature in `features.json`."""
        return dataclasses.replace(self, features={**self.features, key: feature})

    def holding(self, key: str, values: Values) -> "Toy":
        """Another whose every episode has these values, one per step."""
        return dataclasses.replace(self, episodes=tuple({**e, key: values} for e in self.episodes))

    def taking(self, feature: FeatureMapping) -> "Toy":
        """Another whose mapping takes one more feature."""
        mapping = dataclasses.replace(self.mapping, features=(*self.mapping.features, feature))
        return dataclasses.replace(self, mapping=mapping)

    def having(self, key: str, feature: Any, values: Values) -> "Toy":
        """Another that declares and holds a key and takes it under its last name."""
        taken = FeatureMapping(key.rpartition("/")[2], key)
        return self.declaring(key, feature).holding(key, values).taking(taken)

    def without(self, key: str) -> "Toy":
        """Another whose episodes do not hold a key."""
        kept = tuple({k: v for k, v in e.items() if k != key} for e in self.episodes)
        return dataclasses.replace(self, episodes=kept)

    def write(self, directory: Path) -> Path:
        """Writes `toy/1.0.0` and returns its path."""
        version = directory / "toy" / "1.0.0"
        version.mkdir(parents=True)
        _declare(self.features).save_config(str(version))
        num_shards = len(self.episodes) // 2
        lengths = ["2"] * num_shards
        split = {"name": "train", "shardLengths": lengths, "numBytes": "1"}
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        info = {"name": "toy", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
        (version / "dataset_info.json").write_text(json.dumps(info))
        for shard in range(num_shards):
            records = map(serialize, self.episodes[2 * shard : 2 * shard + 2])
            path = version / f"toy-train.tfrecord-{shard:05d}-of-{num_shards:05d}"
            path.write_bytes(b"".join(map(frame, records)))
        return version

    def open(self, directory: Path) -> Any:
        """Writes it and opens it as a source."""
        return open_source(str(self.write(directory)))


def serialize(values: Mapping[str, Values]) -> bytes:
    """A `tf.train.Example` whose lists have the kinds of the values."""
    example = tf_example.Example()
    for key, value in values.items():
        feature = example.features.feature[key]
        flat = np.asarray(value, None if len(value) else np.float32).ravel().tolist()
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            feature.bytes_list.value.extend(value)
        elif any(isinstance(x, float) for x in flat) or not flat:
            feature.float_list.value.extend(flat)
        else:
            feature.int64_list.value.extend(flat)
    return example.SerializeToString()


def jpeg(seed: int, size: int = 8) -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def episode(seed: int, num_steps: int = 3) -> dict[str, Values]:
    """Values of every key of `FEATURES`."""
    rng = np.random.default_rng(seed)
    return {
        "steps/action": rng.normal(size=(num_steps, 2)).astype(np.float32),
        "steps/observation/image": [jpeg(100 * seed + t) for t in range(num_steps)],
        "steps/language_instruction": [b"lift the cup"] * num_steps,
        "episode_metadata/file_path": [f"demo_{seed}".encode()],
    }


def _declare(features: Mapping[str, Any]) -> Any:
    return _feature(traverse_util.unflatten_dict(dict(features), sep="/"))


def _feature(node: Any) -> Any:
    """Nested dicts as feature dictionaries; `steps` as the sequence that RLDS has."""
    if not isinstance(node, dict):
        return node
    children = {name: _feature(child) for name, child in node.items()}
    if "steps" in children:
        children["steps"] = tfds.features.Dataset(children["steps"])
    return tfds.features.FeaturesDict(children)


@pytest.fixture
def toy() -> Toy:
    """Four episodes of three steps in two shards: an action, an image, texts."""
    return Toy(FEATURES, tuple(episode(seed) for seed in range(4)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Runs `octograin edit`, or another module: exit code, lines of stdout and of stderr."""

    def run(*args: object, module: Any = edit) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        code = 0
        try:
            module.main()
        except SystemExit as caught:
            code = int(str(caught.code))
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run
