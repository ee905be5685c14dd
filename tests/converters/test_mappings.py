import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from converters.convert import convert
from converters.mappings import LIBERO, describe, find_mapping, read_mapping
from converters.rlds.source import open_source
from converters.standardize import IMAGES, FeatureMapping
from pipeline.dataset import open_dataset
from pipeline.errors import DataError, UserError

TOML = """
task = "steps/language_instruction"
ignore = ["steps/depth"]

[conventions]
image_orientation = "upright"
rotation = "none"
control_frequency_hz = 10
no_ops = "kept"

[[features]]
key = "action"
source = "steps/action"
dims = ["x_m", "y_m"]

[[features]]
key = "observation/image_primary"
source = "steps/observation/image"
column = "steps"
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "mapping.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", ["", "_no_noops", "_vggt"])
@pytest.mark.parametrize(
    "suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "liber_o10"]
)
def test_libero_is_found_by_the_name_inside(mini_rlds: Path, suite: str, suffix: str) -> None:
    source = dataclasses.replace(open_source(str(mini_rlds)), name=suite + suffix)
    assert find_mapping(source) is LIBERO


def test_another_dataset_is_told_how_to_write_a_mapping(toy: Any, tmp_path: Path) -> None:
    message = r"a dataset named libero_\* .*found toy.*--describe > mapping.toml.*--mapping"
    with pytest.raises(UserError, match=message):
        find_mapping(toy.open(tmp_path))


def test_a_mapping_is_read_from_toml(toy: Any, tmp_path: Path) -> None:
    mapping = read_mapping(written(tmp_path, TOML))
    assert mapping.ignore == ("steps/depth",)
    assert mapping.source_id is None
    assert mapping.conventions.gripper_dim is None
    assert mapping.features == (
        FeatureMapping("action", "steps/action", dims=("x_m", "y_m")),
        FeatureMapping("observation/image_primary", "steps/observation/image", IMAGES),
    )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[conventions]", "[conventions", "mapping.toml: expected a mapping in TOML.*line 5"),
        (
            'column = "steps"',
            'colum = "steps"',
            r"found features\.1: unknown field colum \(column\?\)\. Mend",
        ),
        ("= 10", '= "fast"', "conventions.control_frequency_hz: .* number"),
        ('"upright"', '"sideways"', "conventions.image_orientation: .*'upright', 'rotated_180'"),
        ('rotation = "none"\n', "", "conventions.rotation: "),
        ('["steps/depth"]', "3", "ignore: "),
        (
            'key = "action"',
            'key = "observation/image_primary"',
            "found mapped more than once: observation/im",
        ),
        (
            '"steps"',
            '"../steps"',
            "found features.1: column '../steps' .* must be the name of a folder",
        ),
        ("[conventions]", "[conventions]\ngripper_dim = 1\ngripper_open = 0.0", "must differ"),
    ],
)
def test_a_wrong_mapping_is_told_by_its_field(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert TOML.count(before) >= 1
    with pytest.raises(DataError, match=message) as caught:
        read_mapping(written(tmp_path, TOML.replace(before, after, 1)))
    assert "--describe" in caught.value.remedy


def test_all_wrong_fields_are_told_at_once(tmp_path: Path) -> None:
    text = TOML.replace('"upright"', '"sideways"').replace('"steps/action"', "7")
    with pytest.raises(DataError, match=r"features\.0\.source: .*; conventions\.image_orientation"):
        read_mapping(written(tmp_path, text))


def test_a_mapping_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.toml: expected a mapping in TOML.*No such file"):
        read_mapping(tmp_path / "gone.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"binary.toml: expected a mapping in TOML"):
        read_mapping(tmp_path / "binary.toml")


def test_a_described_mapping_converts_the_same_tensors_as_the_one_built_in(
    mini_rlds: Path, mini_dataset: Path, tmp_path: Path
) -> None:
    source = open_source(str(mini_rlds))
    convert(source, tmp_path / "out", read_mapping(written(tmp_path, describe(source))))
    described, built_in = open_dataset(str(tmp_path / "out")), open_dataset(str(mini_dataset))
    assert described.manifest.tasks == built_in.manifest.tasks
    assert described.columns.keys() == built_in.columns.keys()
    for name, column in described.columns.items():
        for index in range(0, len(column), 1 if name == "episodes" else 25):
            found, expected = column.read(index), built_in.columns[name].read(index)
            assert found.keys() == expected.keys()
            for key, value in found.items():
                assert type(value) is type(expected[key])
                np.testing.assert_array_equal(value, expected[key])


def test_a_described_mapping_leaves_marks_where_it_cannot_know(mini_rlds: Path) -> None:
    lines = describe(open_source(str(mini_rlds))).splitlines()
    marked = [line.partition(" =")[0] for line in lines if "# CHECK" in line]
    assert marked == [
        "licence",
        "image_orientation",
        "rotation",
        "control_frequency_hz",
        "gripper_dim",
        "gripper_open",
        "gripper_close",
        "no_ops",
    ]


def test_texts_that_are_no_instruction_are_described_as_ignored(toy: Any, tmp_path: Path) -> None:
    toy = toy.declaring("steps/note", tfds.features.Text()).holding("steps/note", [b"x"] * 3)
    source = toy.open(tmp_path)
    mapping = read_mapping(written(tmp_path, describe(source)))
    assert mapping.task == "steps/language_instruction"
    assert mapping.source_id == "episode_metadata/file_path"
    assert mapping.ignore == ("steps/note",)
    assert len(convert(source, tmp_path / "out", mapping).episode_lengths) == 4


def test_a_source_without_texts_is_described_with_a_mark(toy: Any, tmp_path: Path) -> None:
    features = {k: v for k, v in toy.features.items() if k == "steps/action"}
    text = describe(dataclasses.replace(toy, features=features).open(tmp_path))
    assert 'task = ""  # CHECK: no text found; name one' in text


# --- licences


def test_the_licence_of_a_column_is_its_own_or_that_of_the_data(toy: Any, tmp_path: Path) -> None:
    text = TOML.replace("[conventions]", 'licence = "MIT"\n[conventions]', 1)
    text += '\n[column_licences]\nsteps = "CC-BY-4.0"\n'
    mapping = read_mapping(written(tmp_path, text))
    assert (mapping.licence, mapping.column_licences) == ("MIT", {"steps": "CC-BY-4.0"})
    mapping = dataclasses.replace(mapping, ignore=("episode_metadata/*",))
    manifest = convert(toy.open(tmp_path), tmp_path / "out", mapping)
    assert manifest.licences == {"episodes": "MIT", "steps": "CC-BY-4.0"}
    assert open_dataset(str(tmp_path / "out")).manifest.licences == manifest.licences


def test_a_licence_that_nobody_named_is_unknown(toy: Any, tmp_path: Path) -> None:
    assert read_mapping(written(tmp_path, TOML)).licence == "unknown"
    manifest = convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    assert manifest.licences == {"episodes": "unknown", "steps": "unknown"}


def test_libero_s_licences_are_in_its_manifest(mini_dataset: Path) -> None:
    assert open_dataset(str(mini_dataset)).manifest.licences == {
        "episodes": "CC-BY-4.0",
        "steps": "CC-BY-4.0",
        "vggt_tokens": "CC-BY-4.0, by weights that may be CC-BY-NC-4.0 (facebook/VGGT-1B)",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("licence = 3", "licence: .*valid string"),
        ("column_licences = 3", "column_licences: Input should be an object"),
        ("column_licences = {steps = 3}", r"column_licences.steps: .*valid string"),
        ("license = 'MIT'", r"found unknown field license \(licence\?\)"),
    ],
)
def test_a_wrong_licence_is_told_by_its_field(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_mapping(written(tmp_path, line + "\n" + TOML))


# --- a mapping for a new source


def test_a_described_mapping_of_any_source_reads_back_and_covers_it(
    toy: Any, tmp_path: Path
) -> None:
    toy = toy.having("steps/count", tfds.features.Scalar(np.int64), [1, 2, 3])
    tokens = tfds.features.Tensor(shape=(32, 16), dtype=np.float32)
    toy = toy.having("steps/tokens", tokens, np.zeros((3, 32, 16), np.float32))
    toy = toy.having("episode_metadata/mass_kg", tfds.features.Scalar(np.float32), [0.5])
    source = toy.open(tmp_path)
    text = describe(source)
    values = tomllib.loads(text)
    assert (values["licence"], values["conventions"]["no_ops"]) == ("unknown", "kept")
    mapping = read_mapping(written(tmp_path, text))
    assert [(m.source, m.column) for m in mapping.features] == [
        ("episode_metadata/mass_kg", "episodes"),
        ("steps/action", "episodes"),
        ("steps/count", "episodes"),
        ("steps/observation/image", "steps"),
        ("steps/tokens", "tokens"),
    ]
    assert mapping.conventions.gripper_dim == 1
    convert(source, tmp_path / "out", mapping)
    columns = open_dataset(str(tmp_path / "out")).columns
    assert {name: len(column) for name, column in columns.items()} == {
        "episodes": 4,
        "steps": 12,
        "tokens": 12,
    }


def test_the_line_about_no_ops_is_valid_once_its_comment_is_followed(
    toy: Any, tmp_path: Path
) -> None:
    text = describe(toy.open(tmp_path))
    text = text.replace('no_ops = "kept"', 'no_ops = "removed_at_conversion"')
    text = text.replace("# no_op_threshold", "no_op_threshold")
    conventions = read_mapping(written(tmp_path, text)).conventions
    assert (conventions.no_ops, conventions.no_op_threshold) == ("removed_at_conversion", 0.0001)
