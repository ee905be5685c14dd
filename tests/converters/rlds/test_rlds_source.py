import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from converters.mapping.standardize import FeatureMapping
from converters.rlds.rlds_source import RldsSource
from converters.sources.open_source import open_source
from converters.sources.reading import read_episodes
from converters.sources.source import SourceKey
from pipeline.errors import DataError, SchemaError, UserError

Tensor = tfds.features.Tensor
FIRST_SHARD = "toy-train.tfrecord-00000-of-00002"
MISSING = f"{FIRST_SHARD}: expected a TFRecord file that can be read; found No such file or direct"


def read(source: RldsSource) -> list[str]:
    """The place of every record that is read, as `shard/episode`."""
    places = [where for shard in source.shards for where, _ in read_episodes(source, shard)]
    pattern = r"toy-train.tfrecord-0*(\d+)-of-\d+, episode (\d+)$"
    return ["/".join(match.groups()) for p in places if (match := re.search(pattern, p))]


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
    assert [(shard.name, shard.num_episodes) for shard in source.shards] == [
        (FIRST_SHARD, 2),
        ("toy-train.tfrecord-00001-of-00002", 2),
    ]


# --- the directory


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (["1.0.0"], None),
        (
            ["1.0.0", "1.1.0"],
            r"one version folder that has it.*; found 1\.0\.0, 1\.1\.0\. Name the",
        ),
        ([], "one version folder that has it.*; found none"),
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
    missing = r"gone: .*features.json.*found no such directory. Correct the path"
    with pytest.raises(DataError, match=missing):
        open_source(str(tmp_path / "gone"))


@pytest.mark.parametrize("name", ["features.json", "meta/info.json"])
def test_a_declaration_named_in_place_of_its_folder_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"found a file\. Name the folder"):
        open_source(str(tmp_path / name))


def test_an_unknown_split_lists_the_splits_there_are(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a split val with episodes; found train.*--split"):
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
        ("dataset_info.json", _without("splits"), "a split train with episodes; found none"),
        ("dataset_info.json", _with_split(shardLengths=["two"]), "'two'"),
        ("dataset_info.json", _with_split(shardLengths=[]), "a split train with episodes"),
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
        (tfds.features.Image(), "Image of uint8 without a size, none of whose records"),
        (tfds.features.Sequence(tfds.features.Image(shape=(8, 8, 3))), ".* of any length"),
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
    toy = toy.declaring("steps/x", feature).taking(FeatureMapping("x", "steps/x"))
    source = toy.open(tmp_path)
    assert source.keys["steps/x"].kind == "other"
    message = (
        f"features.json, steps/x: expected a text, or an image or tensor of known.*found {found}"
    )
    with pytest.raises(SchemaError, match=message + ".* or ignore the key in the mapping"):
        toy.mapping.schema(source)


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
    with pytest.raises(DataError, match=MISSING):
        read(source)


# --- a range of episodes

ALL_SIX = ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]


@pytest.mark.parametrize(
    ("start", "stop", "ranges", "read_places"),
    [
        (
            0,
            6,
            [(0, 0, None), (1, 0, None), (2, 0, None)],
            ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"],
        ),
        (0, 1, [(0, 0, 1)], ["0/0"]),
        (0, 2, [(0, 0, None)], ["0/0", "0/1"]),
        (1, 2, [(0, 1, None)], ["0/1"]),
        (1, 3, [(0, 1, None), (1, 0, 1)], ["0/1", "1/0"]),
        (2, 4, [(1, 0, None)], ["1/0", "1/1"]),
        (2, 3, [(1, 0, 1)], ["1/0"]),
        (3, 6, [(1, 1, None), (2, 0, None)], ["1/1", "2/0", "2/1"]),
        (1, 5, [(0, 1, None), (1, 0, None), (2, 0, 1)], ["0/1", "1/0", "1/1", "2/0"]),
        (5, 6, [(2, 1, None)], ["2/1"]),
    ],
)
def test_a_range_of_episodes_crosses_shards(
    toy: Any, tmp_path: Path, start: int, stop: int, ranges: list, read_places: list[str]
) -> None:
    source = six(toy).open(tmp_path)
    assert source.selection == ""
    selected = source.select(start, stop)
    is_whole = (start, stop) == (0, 6)
    assert selected.selection == ("" if is_whole else f"{start}:{stop} of 6")
    numbers = {shard.paths[0]: number for number, shard in enumerate(source.shards)}
    assert [(numbers[s.paths[0]], s.start, s.stop) for s in selected.shards] == ranges
    assert sum(shard.num_episodes for shard in selected.shards) == stop - start
    assert {shard.num_records for shard in selected.shards} == {2}
    assert read(selected) == read_places
    assert len(read(source)) == 6


def six(toy: Any) -> Any:
    """The same source with six episodes, in three shards."""
    return dataclasses.replace(toy, episodes=(*toy.episodes, *toy.episodes[:2]))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (2, 1), (3, 3), (0, 7), (6, 7), (6, 6), (-1, 2), (-2, -1)]
)
def test_a_range_beyond_the_episodes_is_refused(
    toy: Any, tmp_path: Path, start: int, stop: int
) -> None:
    message = (
        f"1.0.0, split train: expected a range A:B of episodes with 0 <= A < B <= 6; "
        f"found {start}:{stop}. .*--episodes"
    )
    with pytest.raises(UserError, match=message):
        six(toy).open(tmp_path).select(start, stop)


def spoil(path: Path, number: int) -> None:
    """Flips a bit in the data of a record."""
    content = bytearray(path.read_bytes())
    offset = 0
    for _ in range(number):
        offset += int.from_bytes(content[offset : offset + 8], "little") + 16
    content[offset + 12] ^= 1
    path.write_bytes(bytes(content))


def test_records_outside_the_range_may_be_corrupt(toy: Any, tmp_path: Path) -> None:
    source = six(toy).open(tmp_path)
    spoil(tmp_path / "toy" / "1.0.0" / "toy-train.tfrecord-00000-of-00003", 0)
    spoil(tmp_path / "toy" / "1.0.0" / "toy-train.tfrecord-00002-of-00003", 1)
    assert read(source.select(1, 5)) == ["0/1", "1/0", "1/1", "2/0"]
    for start, stop, corrupt in (
        (0, 5, "0000-of-00003, record 0"),
        (1, 6, "02-of-00003, record 1"),
    ):
        with pytest.raises(DataError, match=f"{corrupt}, data: expected CRC32C"):
            read(source.select(start, stop))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (0, 1), (1, 2)])
def test_a_range_of_a_shard_that_ends_early_is_refused(
    toy: Any, tmp_path: Path, start: int, stop: int
) -> None:
    source = toy.open(tmp_path).select(start, stop)
    (tmp_path / "toy" / "1.0.0" / FIRST_SHARD).write_bytes(b"")
    with pytest.raises(DataError, match=f"{FIRST_SHARD}: expected 2 episodes, as dataset_info"):
        read(source)


def test_a_shard_without_permission_is_named(toy: Any, tmp_path: Path, as_nobody: Callable) -> None:
    source = toy.open(tmp_path)
    (tmp_path / "toy" / "1.0.0" / FIRST_SHARD).chmod(0o000)
    with as_nobody(), pytest.raises(DataError, match=f"{FIRST_SHARD}: .*found Permission denied"):
        read(source)
