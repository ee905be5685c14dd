import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from converters.rlds.source import RldsSource, SourceKey, open_source
from converters.rlds.tfrecord import frame
from pipeline.errors import DataError, SchemaError

Tensor = tfds.features.Tensor
FIRST_SHARD = "toy-train.tfrecord-00000-of-00002"


def read(source: RldsSource) -> list[dict[str, Any]]:
    return [episode for shard in source.shards for _, _, episode in read_episodes(source, shard)]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Replaces the values of a JSON file by what `change` returns."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_a_source_knows_its_keys_and_shards_without_reading_an_episode(
    toy: Any, tmp_path: Path
) -> None:
    directory = toy.write(tmp_path)
    for file in directory.glob("*.tfrecord*"):
        file.unlink()
    source = open_source(str(directory))
    assert (source.name, source.version, source.split) == ("toy", "1.0.0", "train")
    assert list(source.keys.values()) == [
        SourceKey("episode_metadata/file_path", "text", (), "utf8"),
        SourceKey("steps/action", "tensor", (2,), "float32"),
        SourceKey("steps/language_instruction", "text", (), "utf8"),
        SourceKey("steps/observation/image", "image", (8, 8, 3), "uint8"),
    ]
    assert [(shard.path.name, shard.num_episodes) for shard in source.shards] == [
        (FIRST_SHARD, 2),
        ("toy-train.tfrecord-00001-of-00002", 2),
    ]


def test_episodes_come_back_as_they_were_written(toy: Any, tmp_path: Path) -> None:
    episodes = read(toy.open(tmp_path))
    assert len(episodes) == len(toy.episodes)
    for found, written in zip(episodes, toy.episodes, strict=True):
        assert sorted(found) == sorted(written)
        assert found["steps/action"].dtype == np.float32
        for key, values in written.items():
            np.testing.assert_array_equal(found[key], values)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.bool_, [True, False, True]),
        (np.uint8, [0, 128, 255]),
        (np.int8, [-128, 0, 127]),
        (np.int32, [-(2**31), 0, 2**31 - 1]),
        (np.int64, [-(2**63), 0, 2**63 - 1]),
        (np.float16, [0.1, -65504.0, 6e-8]),
        (ml_dtypes.bfloat16, [0.1, -3e38, 1e-38]),
        (np.float32, [0.1, -3.4e38, 1e-45]),
        (np.float64, [0.5, -3.0, 1e10]),
    ],
)
def test_every_declared_dtype_comes_back_exactly(
    toy: Any, tmp_path: Path, dtype: Any, values: list[Any]
) -> None:
    array = np.array(values).astype(dtype)
    # Stored as float32 or int64, the two numeric lists of a tf.train.Example.
    wide = np.float32 if np.issubdtype(np.array(values).dtype, np.floating) else np.int64
    toy = toy.having("steps/x", tfds.features.Scalar(dtype), array.astype(wide))
    for episode in read(toy.open(tmp_path)):
        assert episode["steps/x"].dtype == array.dtype
        np.testing.assert_array_equal(episode["steps/x"], array)


def test_a_uint64_is_read_from_the_bits_of_an_int64(toy: Any, tmp_path: Path) -> None:
    toy = toy.having("steps/x", tfds.features.Scalar(np.uint64), [1, -1, 0])
    assert read(toy.open(tmp_path))[0]["steps/x"].tolist() == [1, 2**64 - 1, 0]


# --- the directory


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (["1.0.0"], None),
        (["1.0.0", "1.1.0"], r"one version folder that has it; found 1\.0\.0, 1\.1\.0\. Name the"),
        ([], "one version folder that has it; found none"),
    ],
)
def test_a_parent_stands_for_its_only_version(
    toy: Any, tmp_path: Path, versions: list[str], message: str | None
) -> None:
    written = toy.write(tmp_path)
    parent = tmp_path / "parent"
    parent.mkdir()
    for version in versions:
        shutil.copytree(written, parent / version)
    if message is None:
        assert open_source(str(parent)).directory.name == "1.0.0"
    else:
        with pytest.raises(DataError, match=message):
            open_source(str(parent))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: .*features.json.*found no such directory"):
        open_source(str(tmp_path / "gone"))


def test_an_unknown_split_is_told_the_splits_there_are(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a split val with shards; found train.*--split"):
        open_source(str(toy.write(tmp_path)), split="val")


def test_a_missing_dataset_info_is_named(toy: Any, tmp_path: Path) -> None:
    directory = toy.write(tmp_path)
    (directory / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"dataset_info.json: expected a JSON.*fetch the directory"):
        open_source(str(directory))


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_truncated_json_file_is_named(toy: Any, tmp_path: Path, file: str) -> None:
    directory = toy.write(tmp_path)
    (directory / file).write_text((directory / file).read_text()[:-20])
    with pytest.raises(DataError, match=rf"{file}: .*JSONDecodeError.*fetch the directory again"):
        open_source(str(directory))


def _without(key: str) -> Callable[[dict], dict]:
    return lambda info: {k: v for k, v in info.items() if k != key}


def _with_split(**changes: Any) -> Callable[[dict], dict]:
    return lambda info: info | {"splits": [info["splits"][0] | changes]}


READS = "that tensorflow-datasets reads"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dataset_info.json", lambda _: [1], READS),
        ("dataset_info.json", lambda _: 5, READS),
        ("dataset_info.json", lambda info: info | {"shards": 2}, 'no field named "shards"'),
        ("dataset_info.json", lambda info: info | {"version": "one"}, "Invalid version 'one'"),
        ("dataset_info.json", lambda info: info | {"fileFormat": "zip"}, "'zip' is not a valid"),
        (
            "dataset_info.json",
            lambda info: info | {"fileFormat": "array_record"},
            "expected files in TFRecord; found array_record",
        ),
        ("dataset_info.json", _without("name"), READS),
        ("dataset_info.json", _without("version"), "Invalid version ''"),
        ("dataset_info.json", _without("splits"), "a split train with shards; found none"),
        ("dataset_info.json", _with_split(shardLengths=["two"]), "'two'"),
        ("dataset_info.json", _with_split(shardLengths=[]), "a split train with shards"),
        ("features.json", lambda _: {}, READS),
        ("features.json", lambda _: [1], READS),
        ("features.json", lambda _: {"shape": 1}, 'no field named "shape"'),
        (
            "features.json",
            lambda features: features | {"pythonClassName": "my_robot.features.Steps"},
            "Unrecognized FeatureConnector type: my_robot.features.Steps. Could not import",
        ),
        (
            "features.json",
            lambda features: features["featuresDict"]["features"]["steps"],
            "an RLDS feature dictionary with `steps`",
        ),
    ],
)
def test_what_tensorflow_datasets_cannot_read_is_one_error(
    toy: Any, tmp_path: Path, file: str, change: Callable, message: str
) -> None:
    directory = toy.write(tmp_path)
    edit(directory / file, change)
    with pytest.raises((DataError, SchemaError), match=message) as caught:
        open_source(str(directory))
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feature", "found"),
    [
        (Tensor(shape=(None,), dtype=np.float32), r"Tensor\(shape=\(None,\)"),
        (Tensor(shape=(2, None), dtype=np.float32), r"Tensor\(shape=\(2, None\)"),
        (tfds.features.Image(), r"Image\(shape=\(None, None, 3\)"),
        (Tensor(shape=(2,), dtype=np.float32, encoding="zlib"), ".* with the encoding zlib"),
        (Tensor(shape=(2,), dtype=np.float32, encoding="bytes"), ".* with the encoding bytes"),
        (tfds.features.Sequence(Tensor(shape=(2,), dtype=np.float32)), r"Sequence\(Tensor"),
        (tfds.features.Sequence({"a": tfds.features.Scalar(np.int32)}), r"Sequence\({ 'a'"),
        (tfds.features.Dataset({"a": tfds.features.Scalar(np.int32)}), r"Dataset\({ 'a'"),
    ],
)
def test_ragged_nested_and_encoded_features_are_refused(
    toy: Any, tmp_path: Path, feature: Any, found: str
) -> None:
    message = (
        f"features.json, steps/x: expected a text, or an image or tensor of known.*found {found}"
    )
    with pytest.raises(SchemaError, match=message):
        toy.declaring("steps/x", feature).open(tmp_path)


# --- the records


@pytest.mark.parametrize("promised", ["1", "3"])
def test_a_shard_of_another_length_is_refused(toy: Any, tmp_path: Path, promised: str) -> None:
    directory = toy.write(tmp_path)
    edit(directory / "dataset_info.json", _with_split(shardLengths=[promised, "2"]))
    with pytest.raises(DataError, match=f"{FIRST_SHARD}: expected {promised} episodes.*found 2"):
        read(open_source(str(directory)))


def test_a_missing_shard_is_named(toy: Any, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    (tmp_path / "toy" / "1.0.0" / FIRST_SHARD).unlink()
    with pytest.raises(DataError, match=f"{FIRST_SHARD}: expected a TFRecord file; found no such"):
        read(source)


def test_bytes_that_are_no_example_are_refused(toy: Any, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    (tmp_path / "toy" / "1.0.0" / FIRST_SHARD).write_bytes(frame(b"\xff\xff\xff"))
    with pytest.raises(DataError, match=r"episode 0: expected a serialized tf.train.Example"):
        read(source)


WORDS = [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("steps/reward", [0.0] * 3, "only keys of features.json; found steps/reward"),
        ("steps/action", [1, 2, 3, 4, 5, 6], "steps/action: expected float_list; found int64_list"),
        ("steps/action", WORDS, "steps/action: expected float_list; found bytes_list"),
        ("steps/count", [1.0] * 3, "steps/count: expected int64_list; found float_list"),
        ("steps/observation/image", [1.0] * 3, "image: expected bytes_list; found float_list"),
        ("steps/action", [0.0] * 5, "steps/action: expected a multiple of 2 values; found 5"),
        ("steps/action", [0.0] * 4, r"same number of steps for every key.*'steps/action': 2"),
        ("steps/language_instruction", WORDS[:2], "'steps/language_instruction': 2"),
        (
            "steps/count",
            [1, 300, 2],
            "steps/count: expected uint8 values; found values such as 300",
        ),
        ("steps/count", [1, -1, 2], "steps/count: expected uint8 values; found values such as -1"),
        ("episode_metadata/file_path", WORDS, "file_path: expected one value an episode; found 3"),
    ],
)
def test_an_episode_unlike_its_declaration_is_refused(
    toy: Any, tmp_path: Path, key: str, values: list, message: str
) -> None:
    toy = toy.having("steps/count", tfds.features.Scalar(np.uint8), [1, 2, 3])
    with pytest.raises(SchemaError, match=f"{FIRST_SHARD}, episode 0.*{message}"):
        read(toy.holding(key, values).open(tmp_path))


def test_a_declared_key_that_an_episode_lacks_is_refused(toy: Any, tmp_path: Path) -> None:
    message = r"episode 0, steps/action: expected float32\[2\]; found no such key"
    with pytest.raises(SchemaError, match=message):
        read(toy.without("steps/action").open(tmp_path))


def test_an_episode_without_steps_is_refused(toy: Any, tmp_path: Path) -> None:
    toy = toy.having("steps/reward", tfds.features.Scalar(np.float32), [])
    for key in ("steps/language_instruction", "steps/observation/image"):
        toy = toy.without(key)
    features = {k: v for k, v in toy.features.items() if k in ("steps/action", "steps/reward")}
    toy = type(toy)(features, toy.episodes).holding("steps/action", [])
    toy = toy.without("episode_metadata/file_path")
    with pytest.raises(SchemaError, match=r"at least 1; found \{'steps/action': 0, 'steps/reward'"):
        read(toy.open(tmp_path))
