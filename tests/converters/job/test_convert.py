"""What was converted equals the source, and what was not converted whole does not open."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import xxhash
from array_record.python import array_record_module
from etils import epath
from flax import traverse_util
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters.job.convert import convert
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import registered
from converters.mapping.standardize import FeatureMapping
from converters.rlds.tfrecord import frame, read_records
from converters.sources.open_source import open_source
from converters.sources.reading import read_episodes
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, SchemaError, UserError
from tests.file_checksums import contents

HEADER_BYTES = 32
"""Bytes of the header of a record without blobs: 24, padded to a multiple of 16."""


# --- against tensorflow-datasets' own decoding


def check_episode(dataset: Dataset, index: int, record: bytes, features: Any) -> int:
    """Compares every value of an episode with tensorflow-datasets' own; returns its steps."""
    theirs = features.deserialize_example_np(record)
    steps = [traverse_util.flatten_dict({"steps": s}, sep="/") for s in theirs["steps"]]
    stored = tf_example.Example.FromString(record).features.feature
    ours = dataset.columns["episodes"].read(index)
    first = int(dataset.episode_starts[index])
    assert len(steps) == dataset.manifest.episode_lengths[index]
    assert bytes(ours["source_id"]) == theirs["episode_metadata"]["file_path"]
    task_key = dataset.manifest.task_source
    for t, step in enumerate(steps):
        assert dataset.manifest.tasks[dataset.task_index(index, t)].encode() == step[task_key]
    unseen = set(steps[0]) - {task_key}
    for column, feature in dataset.manifest.schema.features():
        unseen.discard(feature.source)
        for t, step in enumerate(steps):
            expected = step.get(feature.source)
            if feature.kind == "image":
                encoded = dataset.columns[column.name].read(first + t)[feature.key]
                assert encoded == stored[feature.source].bytes_list.value[t]
                # Without TensorFlow, tensorflow-datasets decodes with Pillow.
                pixels = np.asarray(Image.open(io.BytesIO(encoded)))
                np.testing.assert_array_equal(pixels, expected, strict=True)
            elif feature.kind == "tensor":
                per_step = column.per == "step"
                found = dataset.columns[column.name].read(first + t) if per_step else ours
                value = found[feature.key] if per_step else found[feature.key][t]
                np.testing.assert_array_equal(value, expected)
                assert np.asarray(value).dtype == np.asarray(expected).dtype
    assert not unseen
    return len(steps)


def check_all(rlds: Path, dataset: Dataset) -> list[int]:
    """Compares every episode; returns their lengths."""
    features = tfds.builder_from_directory(rlds).info.features
    files = sorted(epath.Path(rlds).glob("*.tfrecord*"))
    records = [record for file in files for record in read_records(file)]
    assert len(records) == dataset.num_episodes
    return [check_episode(dataset, i, record, features) for i, record in enumerate(records)]


def test_every_value_is_the_one_that_tensorflow_datasets_decodes(
    mini_rlds: Path, mini_dataset: Path
) -> None:
    lengths = check_all(mini_rlds, open_dataset(str(mini_dataset)))
    assert lengths == [102, 124, 123, 106]


def test_tokens_of_the_full_size_are_the_ones_that_tensorflow_datasets_decodes(
    shared: Path, tmp_path: Path
) -> None:
    rlds = shared / "libero" / "rlds" / "libero_sim_vggt" / "1.0.0"
    if not rlds.exists():
        pytest.skip("libero_sim_vggt is missing")
    convert(open_source(str(rlds)), tmp_path / "out", registered("libero"))
    dataset = open_dataset(str(tmp_path / "out"))
    assert check_all(rlds, dataset) == [6, 6]
    (column,) = (c for c in dataset.manifest.schema.columns if c.name == "vggt_tokens")
    assert [(f.dtype, f.shape) for f in column.features] == [("float16", (261, 2048))]


# --- what a dataset directory holds


def test_half_precision_tokens_cost_two_bytes_a_value(mini_dataset: Path) -> None:
    shards = open_dataset(str(mini_dataset)).manifest.shards["vggt_tokens"]
    for shard in shards:
        reader = array_record_module.ArrayRecordReader(str(mini_dataset / shard.file))
        sizes = {len(record) for record in reader.read_all()}
        reader.close()
        assert sizes == {HEADER_BYTES + 2 * 21 * 64}


def test_the_manifest_lists_every_file_with_its_size_and_digest(mini_dataset: Path) -> None:
    manifest = open_dataset(str(mini_dataset)).manifest
    listed = {s.file: s for shards in manifest.shards.values() for s in shards}
    others = contents(mini_dataset).keys() - listed.keys()
    assert others == {"dataset.json", "statistics.json"}
    for file, shard in listed.items():
        reader = array_record_module.ArrayRecordReader(str(mini_dataset / file))
        records = reader.read_all()
        reader.close()
        size = (mini_dataset / file).stat().st_size
        assert (shard.records, shard.num_bytes) == (len(records), size)
        assert shard.digest == xxhash.xxh3_128(b"".join(records)).hexdigest()
    assert sorted(manifest.shards) == ["episodes", "steps", "vggt_tokens"]
    records = {c: [s.records for s in shards] for c, shards in manifest.shards.items()}
    assert records == {"episodes": [2, 2], "steps": [226, 229], "vggt_tokens": [226, 229]}
    assert manifest.provenance == {"source": "libero_mini", "version": "1.0.0", "split": "train"}


def test_statistics_are_those_of_the_source(mini_rlds: Path, mini_dataset: Path) -> None:
    source = open_source(str(mini_rlds))
    episodes = [episode for shard in source.shards for _, episode in read_episodes(source, shard)]
    found = open_dataset(str(mini_dataset)).statistics
    keys = {
        "action": "action",
        "observation/proprio": "observation/state",
        "observation/joint_state": "observation/joint_state",
        "reward": "reward",
        "discount": "discount",
    }
    assert found.keys() == keys.keys()
    for key, name in keys.items():
        values = np.concatenate([e[f"steps/{name}"] for e in episodes]).astype(np.float64)
        values = values.reshape(len(values), -1)
        expected = {
            "mean": np.mean(values, axis=0),
            "std": np.std(values, axis=0),
            "min": np.min(values, axis=0),
            "max": np.max(values, axis=0),
            "p01": np.quantile(values, 0.01, axis=0),
            "p99": np.quantile(values, 0.99, axis=0),
        }
        assert found[key].count == 455
        for name_of, value in expected.items():
            np.testing.assert_array_equal(getattr(found[key], name_of), value.astype(np.float32))


def test_two_conversions_are_the_same_to_the_byte(
    mini_rlds: Path, mini_dataset: Path, tmp_path: Path
) -> None:
    convert(open_source(str(mini_rlds)), tmp_path / "again", registered("libero"))
    assert contents(tmp_path / "again") == contents(mini_dataset)


def test_progress_is_reported_by_the_bytes_of_each_episode(toy: Any, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    source = toy.open(tmp_path)
    convert(
        source,
        tmp_path / "out",
        toy.mapping,
        on_progress=lambda num_episodes, num_bytes: reported.append((num_episodes, num_bytes)),
    )
    sizes = [len(record) for shard in source.shards for record in read_records(shard.paths[0])]
    assert reported == [(0, 0), *((1, size) for size in sizes)]


@pytest.mark.parametrize(
    ("selected", "lengths", "records"),
    [((0, 4), [3, 3, 3, 3], [6, 6]), ((1, 4), [3, 3, 3], [3, 6]), ((2, 3), [3], [3])],
)
def test_a_range_of_episodes_is_converted_alone(
    toy: Any, tmp_path: Path, selected: tuple[int, int], lengths: list[int], records: list[int]
) -> None:
    source = toy.open(tmp_path).select(*selected)
    manifest = convert(source, tmp_path / "out", toy.mapping)
    assert list(manifest.episode_lengths) == lengths
    assert [shard.records for shard in manifest.shards["steps"]] == records
    expected = {} if selected == (0, 4) else {"episodes": f"{selected[0]}:{selected[1]} of 4"}
    assert manifest.provenance.get("episodes") == expected.get("episodes")
    dataset = open_dataset(str(tmp_path / "out"))
    ids = [bytes(dataset.columns["episodes"].read(i)["source_id"]) for i in range(len(lengths))]
    assert ids == [f"demo_{i}".encode() for i in range(*selected)]


def test_no_ops_are_removed_and_counted_by_task(toy: Any, tmp_path: Path) -> None:
    conventions = dataclasses.replace(
        toy.mapping.conventions, no_ops="removed_at_conversion", no_op_threshold=1e-3
    )
    mapping = dataclasses.replace(toy.mapping, conventions=conventions)
    still, moving = [0.0, 0.0], [1.0, 0.0]
    actions = [[still, moving, moving], [moving, still, still], [still] * 3, [moving] * 3]
    texts = [b"a", b"b", b"b", b"b"]
    episodes = tuple(
        {**e, "steps/action": np.float32(a), "steps/language_instruction": [text] * 3}
        for e, a, text in zip(toy.episodes, actions, texts, strict=True)
    )
    toy = dataclasses.replace(toy, episodes=episodes)
    manifest = convert(toy.open(tmp_path), tmp_path / "out", mapping)
    assert manifest.episode_lengths == (2, 2, 3)  # the last step stays; an episode of none goes
    assert (manifest.tasks, manifest.removed_steps) == (("a", "b"), (1, 4))
    assert open_dataset(str(tmp_path / "out")).statistics["action"].count == 7


def test_a_task_that_the_no_op_filter_empties_is_refused(toy: Any, tmp_path: Path) -> None:
    conventions = dataclasses.replace(
        toy.mapping.conventions, no_ops="removed_at_conversion", no_op_threshold=1e3
    )
    mapping = dataclasses.replace(toy.mapping, conventions=conventions)
    message = (
        r"1\.0\.0, no-op filter: expected steps of every task whose action is above the threshold "
        r"1000\.0; found all 12 steps of 'lift the cup' below it\. Lower conventions\.no_op_thresh"
    )
    with pytest.raises(DataError, match=message):
        convert(toy.open(tmp_path), tmp_path / "out", mapping)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_shard_without_episodes_is_one_without_records(toy: Any, tmp_path: Path) -> None:
    directory = toy.write(tmp_path)
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2", "0"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "toy-train.tfrecord-00001-of-00002").write_bytes(b"")
    convert(open_source(str(directory)), tmp_path / "out", toy.mapping)
    dataset = open_dataset(str(tmp_path / "out"))
    assert [s.records for s in dataset.manifest.shards["steps"]] == [6, 0]
    assert dataset.columns["steps"].read(5).keys() == {"observation/image_primary"}


def test_a_number_may_have_a_column_of_its_own(toy: Any, tmp_path: Path) -> None:
    feature = tfds.features.Scalar(np.float16)
    toy = toy.declaring("steps/depth_m", feature).holding("steps/depth_m", [0.5, 1.5, 2.5])
    toy = toy.taking(FeatureMapping("depth_m", "steps/depth_m", "depth"))
    convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    column = open_dataset(str(tmp_path / "out")).columns["depth"]
    assert [float(column.read(i)["depth_m"]) for i in range(9, 12)] == [0.5, 1.5, 2.5]


RAGGED = tfds.features.Tensor(shape=(None,), dtype=np.float32)


@pytest.mark.parametrize(
    ("feature", "stored"),
    [
        (RAGGED, {"": [1.0, 2.0, 3.0]}),
        (
            tfds.features.Sequence(RAGGED),
            {"/ragged_flat_values": [1.0], "/row_lengths": [1]},
        ),
        (tfds.features.Tensor(shape=(2,), dtype=np.str_), {"": [b"a"] * 6}),
    ],
)
def test_what_cannot_be_stored_may_be_ignored(
    toy: Any, tmp_path: Path, feature: Any, stored: dict[str, Any]
) -> None:
    toy = toy.declaring("steps/notes", feature)
    for suffix, values in stored.items():
        toy = toy.holding(f"steps/notes{suffix}", values)
    source = toy.open(tmp_path)
    with pytest.raises(SchemaError, match="unmapped: steps/notes; missing: none"):
        convert(source, tmp_path / "out", toy.mapping)
    assert '"steps/notes"' in describe(source)
    ignoring = dataclasses.replace(toy.mapping, ignore=("steps/notes",))
    assert convert(source, tmp_path / "out", ignoring).episode_lengths == (3, 3, 3, 3)


def test_ignored_values_are_not_looked_at(toy: Any, tmp_path: Path) -> None:
    toy = toy.declaring("steps/count", tfds.features.Scalar(np.uint8))
    source = toy.holding("steps/count", [1, 300, -1]).open(tmp_path)
    ignoring = dataclasses.replace(toy.mapping, ignore=("steps/count",))
    assert convert(source, tmp_path / "out", ignoring).episode_lengths == (3, 3, 3, 3)


def test_source_and_destination_may_be_in_an_object_store(
    toy: Any, tmp_path: Path, object_store: epath.Path
) -> None:
    local = toy.open(tmp_path)
    for path in Path(local.directory).iterdir():
        (object_store / "rlds" / path.name).write_bytes(path.read_bytes())
    source = open_source(str(object_store / "rlds"))
    convert(source, object_store / "out", toy.mapping)
    convert(local, tmp_path / "out", toy.mapping)
    expected = {p.relative_to(tmp_path / "out"): p for p in (tmp_path / "out").glob("**/*.*")}
    for name, path in expected.items():
        assert (object_store / "out" / str(name)).read_bytes() == path.read_bytes()
    left = sorted(path.name for path in (object_store / "out").iterdir())
    assert left == ["dataset.json", "episodes", "statistics.json", "steps"]
    with pytest.raises(UserError, match="found a dataset"):
        convert(source, object_store / "out", toy.mapping)
    convert(source.select(0, 2), object_store / "out", toy.mapping, overwrite=True)
    assert b"0:2 of 4" in (object_store / "out" / "dataset.json").read_bytes()
    with pytest.raises(DataError, match=r"found an object store\. Copy the directory"):
        open_dataset(str(object_store / "out"))


# --- the destination


@pytest.fixture
def out(toy: Any, tmp_path: Path) -> Path:
    """The toy, converted."""
    convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    return tmp_path / "out"


def test_a_dataset_is_not_replaced_unasked(toy: Any, out: Path, tmp_path: Path) -> None:
    before = contents(out)
    with pytest.raises(UserError, match=r"found a dataset\. Replace it with --overwrite"):
        convert(toy.open(tmp_path / "again"), out, toy.mapping)
    assert contents(out) == before


def test_overwrite_replaces_every_file(toy: Any, out: Path, tmp_path: Path) -> None:
    flag = tfds.features.Scalar(np.bool_)
    other = toy.declaring("steps/flag", flag).holding("steps/flag", [1, 0, 1])
    other = other.taking(FeatureMapping("flag", "steps/flag", "flags"))
    convert(other.open(tmp_path / "first"), out, other.mapping, overwrite=True)
    assert "flags" in open_dataset(str(out)).columns
    convert(toy.open(tmp_path / "second"), out, toy.mapping, overwrite=True)
    convert(open_source(str(tmp_path / "second" / "toy")), tmp_path / "fresh", toy.mapping)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "file",
    [
        "notes.txt",
        "dataset.json",
        "statistics.json",
        "transformed_statistics.json",
        "hub.json",
        "steps/notes.txt",
        "model.arrayrecord",
        "other_dataset/dataset.json",
        "other_dataset/steps/00000-of-00001.arrayrecord",
        "records/mine.arrayrecord",
        "draft.tmp",
    ],
)
def test_a_folder_with_other_files_is_left_alone(
    toy: Any, tmp_path: Path, file: str, *, overwrite: bool
) -> None:
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(UserError, match=f"empty or new directory; found other files: {file}"):
        convert(toy.open(tmp_path), tmp_path / "out", toy.mapping, overwrite=overwrite)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("destination", "message"),
    [("file", "file: expected an empty or new directory; found a file"), ("file/out", "file/out")],
)
def test_a_file_is_no_destination(toy: Any, tmp_path: Path, destination: str, message: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match=message):
        convert(toy.open(tmp_path), tmp_path / destination, toy.mapping, overwrite=True)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_mapping_that_does_not_fit_leaves_the_old_dataset(
    toy: Any, out: Path, tmp_path: Path
) -> None:
    before = contents(out)
    toy = toy.taking(FeatureMapping("reward", "steps/reward"))
    with pytest.raises(SchemaError, match="missing: steps/reward"):
        convert(toy.open(tmp_path / "again"), out, toy.mapping, overwrite=True)
    assert contents(out) == before


def test_an_episode_too_many_is_noticed_before_there_is_a_manifest(
    toy: Any, tmp_path: Path
) -> None:
    source = toy.open(tmp_path)
    path = source.shards[1].paths[0]
    path.write_bytes(path.read_bytes() + frame(next(read_records(path))))
    with pytest.raises(DataError, match=r"2 episodes, as dataset_info\.json says; found 3"):
        convert(source, tmp_path / "out", toy.mapping)
    assert not (tmp_path / "out" / "dataset.json").exists()
