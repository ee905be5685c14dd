"""The kinds of features that real sources declare: what each becomes, or the sentence it gets."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image as Pillow

from converters.export.rlds_export import export_rlds
from converters.job.convert import convert
from converters.job.shard_conversion import ShardJob
from converters.mapping.mapped_features import FeatureMapping
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.mapping.standardize import SourceMapping
from converters.rlds.rlds_source import RldsSource
from converters.sources.open_source import open_source
from converters.sources.reading import read_episodes
from converters.verify.verifier import Verifier
from pipeline.data.conventions import Conventions, Gripper
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.images import decode_image
from pipeline.errors import DataError, SchemaError
from tests.converters.conftest import MAPPING, Toy, jpeg

Image = tfds.features.Image
Scalar = tfds.features.Scalar
Sequence = tfds.features.Sequence
Tensor = tfds.features.Tensor
Text = tfds.features.Text

IMAGES = [jpeg(seed) for seed in range(6)]
NUMBERS = np.arange(18, dtype=np.float32)
FLAT, ROWS = "steps/x/ragged_flat_values", "steps/x/ragged_row_lengths_0"

# what is declared as steps/x and stored for three steps; what keys with which shapes and values
READ: dict[str, tuple[Any, Mapping[str, Any], Mapping[str, tuple[str, tuple, Any]]]] = {
    "vectors in a sequence of fixed length": (
        Sequence(Tensor(shape=(2,), dtype=np.float32), length=3),
        {FLAT: NUMBERS, ROWS: [3, 3, 3]},
        {"steps/x": ("tensor", (3, 2), NUMBERS.reshape(3, 3, 2))},
    ),
    "images in a sequence of fixed length": (
        Sequence(Image(shape=(8, 8, 3)), length=2),
        {FLAT: IMAGES, ROWS: [2, 2, 2]},
        {
            "steps/x[0]": ("image", (8, 8, 3), IMAGES[0::2]),
            "steps/x[1]": ("image", (8, 8, 3), IMAGES[1::2]),
        },
    ),
    "images of no declared size in a sequence": (
        Sequence(Image(), length=1),
        {FLAT: IMAGES[:3], ROWS: [1, 1, 1]},
        {"steps/x[0]": ("image", (8, 8, 3), IMAGES[:3])},
    ),
    "images of no declared size": (
        Image(),
        {"steps/x": IMAGES[:3]},
        {"steps/x": ("image", (8, 8, 3), IMAGES[:3])},
    ),
    "a text in a tensor of one": (
        Tensor(shape=(1,), dtype=np.str_),
        {"steps/x": [b"a", b"b", b"c"]},
        {"steps/x": ("text", (), [b"a", b"b", b"c"])},
    ),
    "a text in a sequence of one": (
        Sequence(Text(), length=1),
        {FLAT: [b"a", b"b", b"c"], ROWS: [1, 1, 1]},
        {"steps/x": ("text", (), [b"a", b"b", b"c"])},
    ),
}


def having(toy: Toy, feature: Any, values: Mapping[str, Any]) -> Toy:
    """A source that declares `steps/x` and holds values under some keys."""
    toy = toy.declaring("steps/x", feature)
    for key, value in values.items():
        toy = toy.holding(key, value)
    return toy


@pytest.mark.parametrize("name", READ)
def test_what_has_one_reading_is_read(toy: Toy, tmp_path: Path, name: str) -> None:
    feature, values, expected = READ[name]
    source = having(toy, feature, values).open(tmp_path)
    _, episode = next(read_episodes(source, source.shards[0]))
    for key, (kind, shape, value) in expected.items():
        assert (source.keys[key].kind, source.keys[key].shape) == (kind, shape)
        found = episode[key]
        np.testing.assert_array_equal(
            found if isinstance(found, np.ndarray) else list(map(bytes, found)), value
        )
    assert {key for key in source.keys if key.startswith("steps/x")} == set(expected)


def test_a_sequence_of_another_length_than_declared_is_refused(toy: Toy, tmp_path: Path) -> None:
    feature = Sequence(Image(shape=(8, 8, 3)), length=2)
    source = having(toy, feature, {FLAT: IMAGES, ROWS: [2, 3, 1]}).open(tmp_path)
    with pytest.raises(SchemaError, match=r"steps/x\[0\]: expected sequences of 2; found one of 3"):
        next(read_episodes(source, source.shards[0]))


def test_the_size_of_images_is_that_of_the_first_record_that_can_be_read(
    toy: Toy, tmp_path: Path
) -> None:
    toy = toy.declaring("steps/x", Image()).holding("steps/x", [jpeg(7, size=16)] * 3)
    broken = {**toy.episodes[0], "steps/x": [b"no image"] * 3}
    source = dataclasses.replace(toy, episodes=(broken, *toy.episodes[1:])).open(tmp_path)
    assert source.keys["steps/x"].shape == (16, 16, 3)
    source.shards[0].paths[0].unlink()
    assert open_source(str(source.directory)).keys["steps/x"].shape == (16, 16, 3)


def test_steps_that_are_a_sequence_are_read_as_a_dataset(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = toy.open(tmp_path / "dataset")
    monkeypatch.setattr(tfds.features, "Dataset", Sequence)
    directory = toy.write(tmp_path / "sequence")
    monkeypatch.undo()
    assert '"sequence"' in (directory / "features.json").read_text()
    assert open_source(str(directory)).keys == expected.keys


def test_steps_that_are_no_dictionary_are_refused_by_name(toy: Toy, tmp_path: Path) -> None:
    features = {"steps": Tensor(shape=(3,), dtype=np.float32)}
    message = r"features.json, steps: expected a dataset or sequence .*; found Dataset"
    with pytest.raises((DataError, SchemaError), match=message):
        dataclasses.replace(toy, features=features).open(tmp_path)


# --- what a mapping makes of them


def mapped(toy: Toy, *features: FeatureMapping, **changes: Any) -> Toy:
    """The same source under a mapping with other features, which ignores what it does not take."""
    fields = {"features": features or toy.mapping.features, "ignore": ("*",), **changes}
    return dataclasses.replace(toy, mapping=dataclasses.replace(toy.mapping, **fields))


def converted(source: RldsSource, mapping: SourceMapping, directory: Path) -> Dataset:
    """The dataset of a source, which `converters.verify` finds nothing wrong with."""
    convert(source, directory, mapping)
    dataset = open_dataset(str(directory))
    findings = Verifier(epath.Path(directory), dataset.manifest, source).run()
    assert findings.lines == []
    return dataset


def check_round_trip(toy: Toy, tmp_path: Path) -> Dataset:
    """Converts a source, exports it and converts the export again: to the same dataset."""
    source = toy.open(tmp_path)
    dataset = converted(source, toy.mapping, tmp_path / "out")
    exported = open_source(str(export_rlds(dataset, str(tmp_path / "rlds"))))
    again = converted(exported, toy.mapping, tmp_path / "again")
    assert again.manifest.digest() == dataset.manifest.digest()
    assert again.manifest.schema == dataset.manifest.schema
    return dataset


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


CAMERA = FeatureMapping("observation/image_primary", "steps/observation/image", "steps")
ACTION = FeatureMapping("action", "steps/action")
PARTS = {
    "steps/arm/xyz": (Tensor(shape=(3,), dtype=np.float64), np.arange(9, dtype=np.float32)),
    "steps/arm/grip": (Scalar(np.bool_), [0, 1, 0]),
    "steps/arm/mode": (Scalar(np.int64), [5, 2**24, -1]),
    "episode_metadata/mass": (Scalar(np.float32), np.array([0.1], np.float32)),
}


def in_parts(toy: Toy) -> Toy:
    for key, (feature, values) in PARTS.items():
        toy = toy.declaring(key, feature).holding(key, values)
    return toy


def test_keys_are_joined_in_the_order_of_the_mapping(toy: Toy, tmp_path: Path) -> None:
    keys = ("steps/arm/xyz", "steps/arm/grip", "episode_metadata/mass", "steps/arm/mode")
    state = FeatureMapping("observation/proprio", joined=keys, dims=("x", "y", "z", "g", "m", "n"))
    conventions = Conventions("upright", "none", 10.0, "removed_at_conversion", no_op_threshold=0.5)
    toy = mapped(in_parts(toy), ACTION, CAMERA, state, conventions=conventions)
    action = np.array([[1, 1], [0, 0], [1, 1]], np.float32)
    dataset = check_round_trip(toy.holding("steps/action", action), tmp_path)
    _, feature = dataset.manifest.schema.find("observation/proprio", "here")
    assert (feature.shape, feature.dtype, feature.source) == ((6,), "float32", " + ".join(keys))
    stored = np.asarray(dataset.columns["episodes"].read(1)["observation/proprio"])
    mass = float(np.float32(0.1))
    np.testing.assert_array_equal(stored, [[0, 1, 2, 0, mass, 5], [6, 7, 8, 0, mass, -1]])
    assert dataset.statistics["observation/proprio"].mean[2] == 5
    assert dataset.manifest.removed_steps == (4,)


def test_a_joined_feature_is_written_with_from(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    text = describe(in_parts(toy).open(tmp_path))
    path.write_text(text.replace('source = "steps/action"', 'from = ["steps/arm/xyz", "b"]'))
    assert read_mapping(path).features[1].joined == ("steps/arm/xyz", "b")
    both = text.replace('source = "steps/action"', 'source = "a"\nfrom = ["b"]')
    path.write_text(both)
    with pytest.raises(
        DataError, match=r"features \(2nd, action\): action needs either source or from"
    ):
        read_mapping(path)


@pytest.mark.parametrize(
    ("keys", "changes", "message"),
    [
        (("steps/observation/image",), {}, r"image: expected a number or a vector, .* image uint8"),
        (("steps/box",), {}, r"steps/box: expected a number or a vector, .* float32\[2, 2\]"),
        (("steps/note",), {}, "steps/note: expected numbers or an image; found a text"),
        (("steps/gone",), {}, "missing: steps/gone"),
        (
            ("steps/arm/mode",),
            {"steps/arm/mode": [1, 2**24 + 1, 0]},
            "mode: expected integers up to",
        ),
        (("steps/arm/xyz",), {"steps/arm/xyz": [np.nan] * 9}, "xyz, step 0: expected finite"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_its_key(
    toy: Toy, tmp_path: Path, keys: tuple[str, ...], changes: Mapping[str, Any], message: str
) -> None:
    toy = in_parts(toy).declaring("steps/box", Tensor(shape=(2, 2), dtype=np.float32))
    toy = mapped(
        toy.declaring("steps/note", Text()), ACTION, CAMERA, FeatureMapping("x", joined=keys)
    )
    for key, values in changes.items():
        toy = toy.holding(key, values)
    source = toy.open(tmp_path)
    with pytest.raises((DataError, SchemaError), match=message):
        convert(source, tmp_path / "out", toy.mapping)


@pytest.mark.parametrize(
    ("feature", "values", "stored"),
    [
        (Scalar(np.float32), np.array([0.5, 1, 2], np.float32), [[0.5], [1], [2]]),
        (Scalar(np.int64), [3, -1, 0], [[3], [-1], [0]]),
        (Tensor(shape=(2,), dtype=np.int32), [1, 2, 3, 4, 5, 6], [[1, 2], [3, 4], [5, 6]]),
        (Tensor(shape=(2,), dtype=np.bool_), [1, 0, 0, 0, 1, 1], [[1, 0], [0, 0], [1, 1]]),
        (
            Sequence(Scalar(np.float16), length=2),
            {
                "steps/action/ragged_flat_values": NUMBERS[:6],
                "steps/action/ragged_row_lengths_0": [2] * 3,
            },
            [[0, 1], [2, 3], [4, 5]],
        ),
    ],
)
def test_an_action_becomes_a_vector_of_float32(
    toy: Toy, tmp_path: Path, feature: Any, values: Any, stored: list
) -> None:
    toy = mapped(toy.without("steps/action"), ACTION, CAMERA).declaring("steps/action", feature)
    for key, value in (values if isinstance(values, dict) else {"steps/action": values}).items():
        toy = toy.holding(key, value)
    dataset = check_round_trip(toy, tmp_path)
    found = np.asarray(dataset.columns["episodes"].read(0)["action"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored)
    assert dataset.statistics["action"].mean.shape == (len(stored[0]),)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            (CAMERA,),
            "expected a mapping with a feature action, .*found only source_id, obs",
        ),
        (
            (FeatureMapping("action", "steps/plan"),),
            r"steps/plan: expected a number or a vector of one step, not of a horizon, for the"
            r" feature action; found tensor float32\[10, 7\]",
        ),
        (
            (FeatureMapping("action", "episode_metadata/mass"),),
            "episode_metadata/mass: expected the feature action from a key below steps/",
        ),
    ],
)
def test_a_dataset_without_an_action_a_step_is_refused(
    toy: Toy, tmp_path: Path, features: tuple[FeatureMapping, ...], message: str
) -> None:
    toy = in_parts(toy).declaring("steps/plan", Tensor(shape=(10, 7), dtype=np.float32))
    source = toy.open(tmp_path)
    with pytest.raises((DataError, SchemaError), match=message):
        convert(source, tmp_path / "out", mapped(toy, *features).mapping)
    assert not (tmp_path / "out").exists()


def test_grey_images_become_three_equal_channels_on_request(toy: Toy, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    grey = dataclasses.replace(CAMERA, source="steps/x", grey_to_rgb=True)
    toy = toy.declaring("steps/x", Image(shape=(8, 8, 1))).holding("steps/x", [png(pixels)] * 3)
    dataset = check_round_trip(mapped(toy, ACTION, grey), tmp_path)
    _, feature = dataset.manifest.schema.find(grey.key, "here")
    assert (feature.kind, feature.shape) == ("image", (8, 8, 3))
    decoded = np.empty((8, 8, 3), np.uint8)
    decode_image(bytes(dataset.columns["steps"].read(0)[grey.key]), decoded, "here")
    np.testing.assert_array_equal(decoded, np.stack([pixels] * 3, axis=-1))


@pytest.mark.parametrize(
    ("shape", "dtype", "grey", "message"),
    [
        ((8, 8, 1), np.uint8, False, "an image of 3 channels; .*Set grey_to_rgb = true"),
        ((8, 8, 3), np.uint8, True, "an image of 1 channel; .*Leave grey_to_rgb out"),
        ((8, 8, 4), np.uint8, True, "an image of 1 channel; .*ignore the key"),
        ((8, 8, 4), np.uint8, False, "an image of 3 channels; .*ignore the key"),
        ((8, 8, 1), np.uint16, True, "a uint8 image in a step column, .* found uint16"),
    ],
)
def test_other_images_are_refused_by_their_key(
    toy: Toy, tmp_path: Path, *, shape: tuple, dtype: Any, grey: bool, message: str
) -> None:
    toy = toy.declaring("steps/x", Image(shape=shape, dtype=dtype, encoding_format="png"))
    camera = dataclasses.replace(CAMERA, source="steps/x", grey_to_rgb=grey)
    with pytest.raises(SchemaError, match=f"features.json, steps/x: expected {message}"):
        mapped(toy, ACTION, camera).mapping.schema(toy.open(tmp_path))


def test_a_camera_of_pixels_has_a_step_column(toy: Toy, tmp_path: Path) -> None:
    toy = toy.declaring("steps/x", Tensor(shape=(8, 8, 3), dtype=np.uint8))
    toy = toy.holding("steps/x", np.arange(576, dtype=np.int64) % 256)
    camera = FeatureMapping("observation/image_front", "steps/x")
    with pytest.raises(SchemaError, match=r"steps/x: expected a camera in a step column.*column ="):
        mapped(toy, ACTION, camera).mapping.schema(toy.open(tmp_path))
    camera = dataclasses.replace(camera, column="steps")
    dataset = check_round_trip(mapped(toy, ACTION, camera), tmp_path / "right")
    assert dataset.manifest.schema.find("observation/image_front", "here")[1].is_camera


def test_every_view_of_a_sequence_is_a_camera(toy: Toy, tmp_path: Path) -> None:
    toy = toy.declaring("steps/x", Sequence(Image(), length=2))
    toy = toy.holding(FLAT, IMAGES).holding(ROWS, [2, 2, 2])
    views = [
        dataclasses.replace(CAMERA, key=f"observation/x_{n}", source=f"steps/x[{n}]")
        for n in (0, 1)
    ]
    dataset = check_round_trip(mapped(toy, ACTION, *views), tmp_path)
    record = dataset.columns["steps"].read(1)
    assert [bytes(record[view.key]) for view in views] == IMAGES[2:4]
    text = (tmp_path / "rlds/1.0.0/features.json").read_text()
    assert '"length": "2"' in text
    schema = mapped(toy, ACTION, views[1], ignore=("steps/x", "*meta*", "*image")).mapping.schema
    assert [f.key for _, f in schema(toy.open(tmp_path / "one")).features()][1] == "source_id"


# --- instructions


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"task": "", "instruction": "pick the cube"}, ("pick the cube",)),
        ({"instruction": "pick the cube"}, ("pick the cube",)),
        ({"task": ""}, ("",)),
        ({}, ("",)),
    ],
)
def test_a_source_without_texts_is_converted(
    toy: Toy, tmp_path: Path, changes: Mapping[str, Any], tasks: tuple[str, ...]
) -> None:
    features = {k: v for k, v in toy.features.items() if k != "steps/language_instruction"}
    conventions = Conventions("upright", "none", 10.0, "removed_at_conversion", no_op_threshold=0.5)
    toy = dataclasses.replace(toy.without("steps/language_instruction"), features=features)
    toy = mapped(toy, conventions=conventions, **changes)
    action = np.array([[1, 1], [0, 0], [1, 1]], np.float32)
    manifest = check_round_trip(toy.holding("steps/action", action), tmp_path).manifest
    assert (manifest.tasks, manifest.task_source) == (tasks, "")
    assert manifest.removed_steps == (4,)


def test_an_instruction_that_is_missing_beside_other_texts_is_asked_for(
    toy: Toy, tmp_path: Path
) -> None:
    features = {k: v for k, v in toy.features.items() if k != "steps/language_instruction"}
    source = dataclasses.replace(toy, features={**features, "steps/note": Text()}).open(tmp_path)
    message = (
        r'missing: steps/language_instruction. Where .* write task = "" or instruction = "..."'
    )
    with pytest.raises((DataError, SchemaError), match=message):
        convert(source, tmp_path / "out", mapped(toy).mapping)


def test_an_instruction_is_a_key_or_a_text() -> None:
    with pytest.raises(ValueError, match="instruction and task 'steps/x': give one of them"):
        dataclasses.replace(MAPPING, task="steps/x", instruction="pick the cube")


def test_the_plan_of_a_mapping_of_before_is_what_it_was(toy: Toy, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    job = ShardJob(source, toy.mapping, toy.mapping.schema(source), epath.Path(tmp_path / "out"))
    assert job.plan_digest == "d3b8d976eba83834"
    assert job.schema.hash() == "78ba4dfd79f661f5"


# --- values that no type shows


@pytest.mark.parametrize(
    ("commands", "opens", "closes", "message"),
    [
        (
            [0, 1, 0],
            5.0,
            0.0,
            "found 0 and 1 alone, which would both close it. Correct gripper_open",
        ),
        ([0, 1, 0], 5.0, 2.0, "found 0 and 1 alone, which would both close it"),
        ([-1, 1, 1], 0.0, 9.0, "found -1 and 1 alone, which would both open it"),
    ],
)
def test_a_gripper_whose_two_commands_are_one_is_refused(
    toy: Toy, tmp_path: Path, commands: list[int], opens: float, closes: float, message: str
) -> None:
    toy = gripping(toy, commands, opens, closes)
    with pytest.raises(SchemaError, match=f"gripper_dim 1: expected commands around .*{message}"):
        convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    assert not (tmp_path / "out/dataset.json").exists()


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([0, 0.08, 0.03], ""),
        ([0.07, 0.08, 0.08], "grippers.dim 1: commands between 0.07 and 0.08 never close it by "),
        ([0, 80, 30], "grippers.dim 1: its commands 0 and 80 lie far outside open 0.08 and close"),
    ],
)
def test_a_width_far_from_its_range_is_reported(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture, commands: list, message: str
) -> None:
    toy = gripping(toy, commands, 1.0, 0.0)
    width = dataclasses.replace(
        MAPPING.conventions, grippers=(Gripper(1, 0.08, 0.0, "continuous"),)
    )
    mapping = dataclasses.replace(toy.mapping, conventions=width)
    convert(toy.open(tmp_path), tmp_path / "out", mapping)
    assert len(caplog.messages) == bool(message)
    assert message in "".join(caplog.messages)


@pytest.mark.parametrize(
    ("commands", "opens", "closes", "message"),
    [
        ([0, 1, 1], 1.0, 0.0, ""),
        ([-1, 1, 1], -1.0, 1.0, ""),
        ([-1, 1, 1], 1.0, 0.0, "lie far outside gripper_open 1 and gripper_close 0"),
        ([0, 1, 1], -1.0, 1.0, ""),
        ([0, 0, 0], 1.0, 0.0, ""),
        ([3, 3, 3], 9.0, 0.0, "commands between 3 and 3 never open it by gripper_open 9"),
        ([0, 0.03, 0.08], 1.0, 0.0, "commands between 0 and 0.08 never open it by gripper_open 1"),
        ([0.8, 0.9, 1], 1.0, 0.0, "commands between 0.8 and 1 never close it"),
    ],
)
def test_a_gripper_that_may_be_right_is_converted(
    toy: Toy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    commands: list[float],
    opens: float,
    closes: float,
    message: str,
) -> None:
    toy = gripping(toy, commands, opens, closes)
    convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    assert len(caplog.messages) == bool(message)
    assert message in "".join(caplog.messages)


def gripping(toy: Toy, commands: list[float], opens: float, closes: float) -> Toy:
    conventions = Conventions("upright", "none", 10.0, "kept", 1, opens, closes)
    action = np.array([[0.5, command] for command in commands], np.float32)
    return mapped(toy.holding("steps/action", action), conventions=conventions)


@pytest.mark.parametrize(
    ("feature", "values", "count"),
    [
        (Scalar(np.float64), 1.7e9 + 0.05 * np.arange(3), 8),
        (Scalar(np.float64), 0.05 * np.arange(3), 0),
        (Scalar(np.float64), np.zeros(3), 0),
        (Scalar(np.float32), 1.7e9 + np.zeros(3), 0),
        (Tensor(shape=(2,), dtype=np.float64), np.array([0, 1.7e9, 1, 1.7e9, 2, 1.8e9]), 4),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_times_that_float32_cannot_tell_apart_are_named(
    toy: Toy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    feature: Any,
    values: np.ndarray,
    count: int,
    joined: bool,
) -> None:
    toy = toy.declaring("steps/t", feature).holding("steps/t", values.astype(np.float32))
    time = FeatureMapping("t", joined=("steps/action", "steps/t"))
    time = time if joined else FeatureMapping("t", "steps/t")
    convert(toy.open(tmp_path), tmp_path / "out", mapped(toy, ACTION, CAMERA, time).mapping)
    expected = f"warning: steps/t: {count} steps equal the one before at values such as 1.7e+09"
    assert [m.partition(", where float32 has steps of 128")[0] for m in caplog.messages] == (
        [expected] if count else []
    )


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({}, []),
        (
            {"features": (ACTION,)},
            ["warning: no camera is stored; the mapping ignores steps/observation/image"],
        ),
        (
            {"task": "episode_metadata/file_path"},
            [
                "warning: episode_metadata/file_path: the instructions look like names of episodes"
                " or files, such as 'demo_0'; task = \"\" leaves them out"
            ],
        ),
        ({"task": ""}, []),
    ],
)
def test_a_mapping_that_loses_what_training_needs_is_warned_of(
    toy: Toy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    messages: list[str],
) -> None:
    mapping = dataclasses.replace(toy.mapping, ignore=("*",), source_id=None, **changes)
    convert(toy.open(tmp_path), tmp_path / "out", mapping)
    assert caplog.messages == messages


def test_pixels_that_are_floats_are_warned_of(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feature = Tensor(shape=(8, 8, 3), dtype=np.float32)
    toy = toy.declaring("steps/front", feature)
    toy = toy.holding("steps/front", np.zeros((3, 8, 8, 3), np.float32))
    front = FeatureMapping("observation/front", "steps/front", "steps")
    mapping = mapped(toy, ACTION, CAMERA, front).mapping
    convert(toy.open(tmp_path), tmp_path / "out", mapping)
    assert caplog.messages == [
        "warning: observation/front: float32 (8, 8, 3) is no camera, whose pixels are uint8: "
        "no image tokenizer takes it. Write uint8 at the source"
    ]
