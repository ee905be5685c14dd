import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from converters.job.convert import convert
from converters.mapping.mapping_registry import registered
from converters.mapping.standardize import FeatureMapping, Standardized, standardize
from converters.sources.open_source import open_source
from converters.sources.reading import read_episodes
from pipeline.data.conventions import Gripper, PoseRotation
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, SchemaError

Scalar = tfds.features.Scalar
Tensor = tfds.features.Tensor
Image = tfds.features.Image
X = FeatureMapping("x", "steps/x")


def converted(toy: Any, directory: Path) -> Dataset:
    convert(toy.open(directory), directory / "out", toy.mapping)
    return open_dataset(str(directory / "out"))


def mapped(toy: Any, **changes: Any) -> Any:
    """The same directory under a mapping with other fields."""
    return dataclasses.replace(toy, mapping=dataclasses.replace(toy.mapping, **changes))


# --- the dtype law


@pytest.mark.parametrize(
    ("dtype", "values", "at_rest", "in_batch"),
    [
        (np.uint8, [0, 7, 255], "uint8", "uint8"),
        (np.bool_, [True, False, True], "bool", "bool"),
        (np.int32, [-(2**31), 0, 2**31 - 1], "int32", "int32"),
        (np.int8, [-128, 0, 127], "int32", "int32"),
        (np.int64, [-(2**31), 0, 2**31 - 1], "int32", "int32"),
        (np.uint32, [0, 1, 2**31 - 1], "int32", "int32"),
        (np.float16, [0.1, -65504.0, 6e-8], "float16", "float16"),
        (ml_dtypes.bfloat16, [0.1, -3e38, 1e-38], "bfloat16", "float32"),
        (np.float32, [0.1, -3.4e38, 1e-45], "float32", "float32"),
        (np.float64, [0.1, -3.4e38, 1e-45], "float32", "float32"),
    ],
)
def test_values_that_the_law_allows_are_stored_exactly(
    toy: Any, tmp_path: Path, dtype: Any, values: list, at_rest: str, in_batch: str
) -> None:
    source = np.array(values).astype(dtype)
    wide = np.float32 if isinstance(values[1], float) else np.int64
    dataset = converted(toy.having("steps/x", Scalar(dtype), source.astype(wide)), tmp_path)
    _, feature = dataset.manifest.schema.find("x", "here")
    assert (feature.dtype, feature.batch_dtype) == (at_rest, in_batch)
    stored = np.asarray(dataset.columns["episodes"].read(3)["x"])
    assert stored.dtype.name == at_rest
    np.testing.assert_array_equal(stored, source.astype(at_rest))


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        (np.int64, [1, 2**31, -(2**40)], "fit int32; found 2 int64 .* 2147483648, -1099511627776"),
        (np.uint64, [1, -1, 2], "values that fit int32; found 1 uint64 .* 18446744073709551615"),
        (np.float16, [1.0, 70000.0, 2.0], "values that fit float16; found 1 float16 .* as inf"),
        (np.float16, [np.nan, 1.0, -np.inf], "fit float16; found 2 float16 .* nan, -inf"),
        (ml_dtypes.bfloat16, [1.0, np.nan, 2.0], "fit bfloat16; found 1 bfloat16 .* nan"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_place_and_samples(
    toy: Any, tmp_path: Path, dtype: Any, values: list, message: str
) -> None:
    toy = toy.having("steps/x", Scalar(dtype), values)
    place = "toy-train.tfrecord-00000-of-00002, episodes 0, 1: steps/x: expected"
    with pytest.raises(DataError, match=f"{place} .*{message}.*or rescale them at"):
        converted(toy, tmp_path)


def test_a_float64_beyond_float32_is_refused(toy: Any, tmp_path: Path) -> None:
    # A tf.train.Example cannot carry one: the episode is made by hand.
    source = toy.having("steps/x", Scalar(np.float64), [0.0] * 3).open(tmp_path)
    schema = toy.taking(X).mapping.schema(source)
    _, episode = next(read_episodes(source, source.shards[0]))
    episode["steps/x"] = np.array([1.0, 1e300, 2.0])
    with pytest.raises(SchemaError, match=r"there, steps/x: expected values that fit float32.*1e"):
        standardize(episode, schema, toy.mapping, "there")


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (
            Tensor(shape=(2,), dtype=np.str_),
            "features.json, steps/x: expected a text, or .*, of texts.*ignore the key",
        ),
        (Tensor(shape=(2,), dtype=np.object_), "of known shape without an encoding.*, of texts"),
        (Tensor(shape=(2,), dtype=np.complex64), "numeric dtype.*found complex64"),
        (tfds.features.Text(), "steps/x: expected numbers or an image; found a text.*`task`"),
        (Scalar(np.str_), "expected numbers or an image; found a text"),
        (
            Image(shape=(8, 8, 3)),
            'uint8 image in a step column.*found uint8 in the column episodes.*column = "steps"',
        ),
    ],
)
def test_types_that_the_law_refuses_are_refused_before_a_record_is_read(
    toy: Any, tmp_path: Path, feature: Any, message: str
) -> None:
    toy = toy.declaring("steps/x", feature).taking(X)
    with pytest.raises(SchemaError, match=message):
        toy.mapping.schema(toy.open(tmp_path))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png"), "uint8 image.*uint16"),
        (Image(shape=(8, 8, 1)), r"an image of 3 channels; found \[8, 8, 1\]"),
    ],
)
def test_images_that_are_not_rgb_of_8_bits_are_refused(
    toy: Any, tmp_path: Path, feature: Any, message: str
) -> None:
    toy = toy.declaring("steps/x", feature).taking(FeatureMapping("x", "steps/x", "steps"))
    with pytest.raises(SchemaError, match=f"features.json, steps/x: expected .*{message}"):
        toy.mapping.schema(toy.open(tmp_path))


# --- coverage of the source


def test_unmapped_and_missing_keys_are_reported_at_once(toy: Any, tmp_path: Path) -> None:
    toy = toy.declaring("steps/depth", Scalar(np.float32)).declaring("steps/b", Scalar(np.int32))
    toy = toy.taking(FeatureMapping("reward", "steps/reward"))
    message = "unmapped: steps/b, steps/depth; missing: steps/reward. .*--describe > mapping.toml"
    with pytest.raises(SchemaError, match=message):
        toy.mapping.schema(toy.open(tmp_path))


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"task": "steps/task"}, "missing: steps/task"),
        ({"source_id": "episode_metadata/id"}, "missing: episode_metadata/id"),
    ],
)
def test_a_missing_text_is_reported(
    toy: Any, tmp_path: Path, changes: dict[str, str], missing: str
) -> None:
    with pytest.raises(SchemaError, match=missing):
        mapped(toy, **changes).mapping.schema(toy.open(tmp_path))


def test_an_instruction_for_all_beside_one_of_the_source_says_what_to_ignore(
    toy: Any, tmp_path: Path
) -> None:
    other = dataclasses.replace(toy.mapping, task="", instruction="pick up the cup")
    with pytest.raises(SchemaError, match=r"unmapped: steps/language_instruction.*ignore its key"):
        converted(dataclasses.replace(toy, mapping=other), tmp_path)


def test_an_unmapped_key_alone_is_reported(toy: Any, tmp_path: Path) -> None:
    toy = toy.declaring("steps/depth", Scalar(np.float32))
    with pytest.raises(SchemaError, match="unmapped: steps/depth; missing: none"):
        toy.mapping.schema(toy.open(tmp_path))


@pytest.mark.parametrize("glob", ["steps/depth/*", "*depth*", "steps/depth/[ab]"])
def test_ignored_keys_are_left_out(toy: Any, tmp_path: Path, glob: str) -> None:
    toy = toy.declaring("steps/depth/a", Scalar(np.float32)).holding("steps/depth/a", [0.0] * 3)
    dataset = converted(mapped(toy, ignore=(glob,)), tmp_path)
    assert "depth" not in dataset.manifest.dumps()


def test_an_optional_key_may_be_absent(toy: Any, tmp_path: Path) -> None:
    tokens = FeatureMapping("tokens", "steps/tokens", "vggt_tokens", optional=True)
    dataset = converted(toy.taking(tokens), tmp_path)
    assert list(dataset.columns) == ["episodes", "steps"]


@pytest.mark.parametrize("key", ["action", "source_id"])
def test_two_sources_of_one_feature_are_refused(toy: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"mapped more than once: {key}"):
        toy.taking(FeatureMapping(key, "steps/other"))


@pytest.mark.parametrize("column", ["", "..", "../elsewhere", "/tmp", "a/b"])
def test_a_column_is_a_folder_of_the_dataset(column: str) -> None:
    with pytest.raises(ValueError, match=f"column '{re.escape(column)}' of x must be the name"):
        FeatureMapping("x", "steps/x", column)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "steps/x"}, r"steps/x: expected a text, as task of the mapping; found float32\["),
        ({"source_id": "steps/x"}, "expected a text, as source_id of the mapping"),
        ({"source_id": "steps/note"}, "one text per episode, as source_id .*; found one per step"),
    ],
)
def test_texts_are_named_by_the_keys_of_texts(
    toy: Any, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    toy = toy.declaring("steps/x", Scalar(np.float32))
    toy = toy.declaring("steps/note", tfds.features.Text())
    with pytest.raises(SchemaError, match=message):
        mapped(toy, ignore=("*",), **changes).mapping.schema(toy.open(tmp_path))


def test_published_libero_becomes_these_columns(mini_rlds: Path) -> None:
    schema = registered("libero").schema(open_source(str(mini_rlds)))
    assert {column.name: [f.key for f in column.features] for column in schema.columns} == {
        "episodes": [
            "action",
            "observation/proprio",
            "observation/joint_state",
            "reward",
            "discount",
            "is_first",
            "is_last",
            "is_terminal",
            "source_id",
        ],
        "steps": ["observation/image_primary", "observation/image_wrist"],
        "vggt_tokens": ["observation/vggt_tokens"],
    }


# --- texts and values of the whole episode


def tasks_of(dataset: Dataset) -> list[str]:
    """The instruction of every step of the first episode."""
    steps = range(dataset.manifest.episode_lengths[0])
    return [dataset.manifest.tasks[dataset.task_index(0, step)] for step in steps]


@pytest.mark.parametrize(
    "texts",
    [
        ["open the drawer", "open the drawer", "close it"],
        ["", "", ""],
        ["öffne die Schublade", "打开抽屉", "öffne die Schublade"],
    ],
)
def test_every_step_keeps_its_instruction(toy: Any, tmp_path: Path, texts: list[str]) -> None:
    toy = toy.holding("steps/language_instruction", [text.encode() for text in texts])
    dataset = converted(toy, tmp_path)
    assert tasks_of(dataset) == texts
    assert dataset.manifest.tasks == tuple(dict.fromkeys(texts))
    assert dataset.manifest.episode_tasks == (0, 0, 0, 0)


def test_an_instruction_of_the_whole_episode_is_that_of_each_step(toy: Any, tmp_path: Path) -> None:
    toy = mapped(toy, task="episode_metadata/file_path", source_id=None, ignore=("steps/lang*",))
    dataset = converted(toy, tmp_path)
    assert tasks_of(dataset) == ["demo_0"] * 3
    assert dataset.manifest.episode_lengths == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("steps/language_instruction", [b"lift", b"\xe9t\xe9", b"lift"]),
        ("episode_metadata/file_path", [b"d\xe9mo"]),
    ],
)
def test_a_text_that_is_not_utf8_is_refused(
    toy: Any, tmp_path: Path, key: str, values: list[bytes]
) -> None:
    message = rf"00000-of-00002, episodes 0, 1: {key}: expected a text in UTF-8; found b'.*\\xe9"
    with pytest.raises(DataError, match=message):
        converted(toy.holding(key, values), tmp_path)


def test_a_number_of_the_whole_episode_is_repeated_for_each_step(toy: Any, tmp_path: Path) -> None:
    mass = Tensor(shape=(2,), dtype=np.float32)
    dataset = converted(toy.having("episode_metadata/mass_kg", mass, [0.5, 2.0]), tmp_path)
    stored = dataset.columns["episodes"].read(2)["mass_kg"]
    np.testing.assert_array_equal(np.asarray(stored), [[0.5, 2.0]] * 3)


def test_an_image_of_the_whole_episode_is_repeated_for_each_step(toy: Any, tmp_path: Path) -> None:
    goal = toy.episodes[0]["steps/observation/image"][0]
    toy = toy.declaring("episode_metadata/goal", Image(shape=(8, 8, 3), encoding_format="jpeg"))
    toy = toy.holding("episode_metadata/goal", [goal])
    toy = toy.taking(FeatureMapping("goal", "episode_metadata/goal", "steps"))
    column = converted(toy, tmp_path).columns["steps"]
    assert all(column.read(i)["goal"] == goal for i in range(12))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_trajectory_that_is_not_finite_is_refused_for_its_statistics(
    toy: Any, tmp_path: Path, value: float
) -> None:
    spoiled = toy.having("steps/x", Scalar(np.float32), np.array([0, value, value], np.float32))
    with pytest.raises(DataError, match=r"steps/x, step 1: expected finite.*and 1 more such"):
        converted(spoiled, tmp_path)


def test_a_gripper_beyond_the_action_is_refused(toy: Any, tmp_path: Path) -> None:
    conventions = dataclasses.replace(toy.mapping.conventions, gripper_dim=9)
    with pytest.raises(
        SchemaError, match=r"steps/action: expected an action of one axis with the gripper_dim 9"
    ):
        converted(mapped(toy, conventions=conventions), tmp_path)


def test_grippers_and_rotations_beyond_their_features_are_refused(toy: Any, tmp_path: Path) -> None:
    none = toy.mapping.conventions
    two = dataclasses.replace(none, grippers=(Gripper(0), Gripper(13)))
    message = r"steps/action: expected an action .* the grippers\.dim 0, 13 of the mapping; found"
    with pytest.raises(SchemaError, match=message):
        converted(mapped(toy, conventions=two), tmp_path / "a")
    for pose, found in (
        (PoseRotation("observation/proprio", 0, "axis_angle"), "no such feature"),
        (PoseRotation("action", 0, "axis_angle"), r"\[2\]"),
    ):
        conventions = dataclasses.replace(none, rotation="axis_angle", rotations=(pose,))
        message = f"conventions.rotations: expected {pose} inside a vector .* found {found}"
        with pytest.raises(SchemaError, match=message):
            converted(mapped(toy, conventions=conventions), tmp_path / pose.feature)


def test_an_image_of_another_size_is_refused_while_converting(toy: Any, tmp_path: Path) -> None:
    images = list(toy.episodes[0]["steps/observation/image"])
    images[1] = images[1][:2]
    spoiled = toy.holding("steps/observation/image", images)
    with pytest.raises(DataError, match=r"steps/observation/image, step 1: expected a readable"):
        converted(spoiled, tmp_path)


# --- steps without motion

FEATURES = {
    "steps/is_first": Scalar(np.bool_),
    "steps/is_last": Scalar(np.bool_),
    "steps/reward": Scalar(np.float32),
    "steps/tokens": Tensor(shape=(2, 3), dtype=np.float16),
    "episode_metadata/mass_kg": Scalar(np.float32),
}
TEXTS = [b"open", b"open", b"close", b"close", b"close", b"wait"]
TOKENS = np.arange(36).reshape(6, 2, 3).astype(np.float32)


def moving(toy: Any, arm: list[float], gripper: list[float] | None = None) -> Any:
    """Episodes of six steps whose still ones are removed, below a motion of one half."""
    conventions = dataclasses.replace(
        toy.mapping.conventions,
        no_ops="removed_at_conversion",
        no_op_threshold=0.5,
        gripper_dim=1,
    )
    toy = mapped(toy, conventions=conventions)
    values = {
        "steps/action": np.array([arm, gripper or [0.0] * 6], np.float32).T,
        "steps/observation/image": [jpeg(t) for t in range(6)],
        "steps/language_instruction": TEXTS,
        "steps/is_first": [1, 0, 0, 0, 0, 0],
        "steps/is_last": [0, 0, 0, 0, 0, 1],
        "steps/reward": np.arange(6, dtype=np.float32),
        "steps/tokens": TOKENS,
        "episode_metadata/mass_kg": np.array([2.5], np.float32),
    }
    for key, feature in FEATURES.items():
        column = "tokens" if key.endswith("tokens") else "episodes"
        toy = toy.declaring(key, feature)
        toy = toy.taking(FeatureMapping(key.rpartition("/")[2], key, column))
    for key, value in values.items():
        toy = toy.holding(key, value)
    return toy


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def standardized(toy: Any, directory: Path) -> Standardized:
    """The first episode."""
    source = toy.open(directory)
    _, episode = next(read_episodes(source, source.shards[0]))
    return standardize(episode, toy.mapping.schema(source), toy.mapping, "there")


@pytest.mark.parametrize(
    ("arm", "gripper", "kept"),
    [
        ([1, 1, 1, 1, 1, 1], None, [0, 1, 2, 3, 4, 5]),
        ([0, 0, 1, 0, 1, 0], None, [2, 4, 5]),
        ([0, 0, 1, 0, 1, 1], None, [2, 4, 5]),
        ([1, 0, 0, 0, 0, 0], None, [0, 5]),
        ([1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 2, 4, 5]),
        ([0, 0, 0, 0, 0, 1], None, [5]),
    ],
)
def test_every_feature_loses_the_same_steps(
    toy: Any, tmp_path: Path, arm: list, gripper: list | None, kept: list[int]
) -> None:
    found = standardized(moving(toy, arm, gripper), tmp_path)
    removed = [t for t in range(6) if t not in kept]
    values = found.values
    assert found.num_steps == len(kept)
    assert found.tasks == tuple(TEXTS[t].decode() for t in kept)
    assert found.removed == tuple(TEXTS[t].decode() for t in removed)
    assert np.asarray(values["action"])[:, 0].tolist() == [arm[t] for t in kept]
    assert np.asarray(values["reward"]).tolist() == kept
    assert np.asarray(values["mass_kg"]).tolist() == [2.5] * len(kept)
    np.testing.assert_array_equal(np.asarray(values["tokens"]), TOKENS[kept].astype(np.float16))
    assert [bytes(image) for image in values["observation/image_primary"]] == [
        jpeg(t) for t in kept
    ]
    assert [bytes(text) for text in values["source_id"]] == [b"demo_0"]
    assert np.asarray(values["is_first"]).tolist() == [True] + [False] * (len(kept) - 1)
    assert np.asarray(values["is_last"]).tolist() == [False] * (len(kept) - 1) + [True]


def test_an_episode_that_never_moves_has_no_steps(toy: Any, tmp_path: Path) -> None:
    found = standardized(moving(toy, [0, 0, 0.4, 0, -0.4, 0]), tmp_path)
    assert (found.num_steps, found.tasks) == (0, ())
    assert found.removed == tuple(text.decode() for text in TEXTS)
    assert {len(value) for key, value in found.values.items() if key != "source_id"} == {0}
    assert np.asarray(found.values["tokens"]).shape == (0, 2, 3)


@pytest.mark.parametrize("no_ops", ["kept", "removed_at_source"])
def test_without_the_filter_every_step_stays(toy: Any, tmp_path: Path, no_ops: str) -> None:
    toy = moving(toy, [0, 0, 0, 0, 0, 0])
    conventions = dataclasses.replace(toy.mapping.conventions, no_ops=no_ops, no_op_threshold=None)
    found = standardized(mapped(toy, conventions=conventions), tmp_path)
    assert (found.num_steps, found.removed) == (6, ())


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32])
def test_the_first_step_keeps_the_dtype_of_its_mark(toy: Any, tmp_path: Path, dtype: Any) -> None:
    toy = moving(toy, [0, 1, 0, 1, 0, 1]).declaring("steps/is_first", Scalar(dtype))
    if dtype == np.float32:
        toy = toy.holding("steps/is_first", np.array([1, 0, 0, 0, 0, 0], np.float32))
    dataset = converted(toy, tmp_path)
    _, feature = dataset.manifest.schema.find("is_first", "here")
    stored = np.asarray(dataset.columns["episodes"].read(0)["is_first"])
    assert stored.dtype == feature.numpy_dtype
    assert stored.tolist() == [1, 0, 0]


def test_the_filter_does_without_a_mark_of_the_first_step(toy: Any, tmp_path: Path) -> None:
    toy = moving(toy, [0, 1, 0, 1, 0, 1])
    kept = tuple(m for m in toy.mapping.features if m.key != "is_first")
    found = standardized(mapped(toy, features=kept, ignore=("steps/is_first",)), tmp_path)
    assert "is_first" not in found.values
    assert found.num_steps == 3


def test_the_filter_needs_an_action(toy: Any) -> None:
    conventions = moving(toy, [1] * 6).mapping.conventions
    with pytest.raises(ValueError, match="gripper_dim and no_op_threshold need a feature action"):
        mapped(toy, conventions=conventions, features=())
