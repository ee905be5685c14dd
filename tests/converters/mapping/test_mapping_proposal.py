import dataclasses
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from hypothesis import given, settings, strategies as st

from converters.job.convert import convert
from converters.mapping.computed_source import compute_source
from converters.mapping.mapped_features import IMAGES, FeatureMapping
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import find_mapping, read_mapping, registered
from converters.mapping.standardize import SourceMapping
from converters.rlds.rlds_source import RldsSource
from converters.sources.open_source import open_source
from converters.sources.source import SourceKey
from pipeline.data.dataset import open_dataset
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
    assert find_mapping(source) is registered("libero")


def test_another_dataset_is_shown_how_to_write_a_mapping(toy: Any, tmp_path: Path) -> None:
    message = r"a dataset that .* prints.*found toy.*--describe > mapping.toml.*--mapping"
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
            r"found features \(2nd, .*\): unknown field colum \(column\?\)\. Fix",
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
            r"found features \(2nd, .*\): column '../steps' .* must be the name of a folder",
        ),
        ("[conventions]", "[conventions]\ngripper_dim = 1\ngripper_open = 0.0", "must differ"),
    ],
)
def test_a_wrong_mapping_is_reported_by_its_field(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert TOML.count(before) >= 1
    with pytest.raises(DataError, match=message) as caught:
        read_mapping(written(tmp_path, TOML.replace(before, after, 1)))
    assert "--describe" in caught.value.remedy


def test_all_wrong_fields_are_reported_at_once(tmp_path: Path) -> None:
    text = TOML.replace('"upright"', '"sideways"').replace('"steps/action"', "7")
    with pytest.raises(
        DataError, match=r"features \(1st, action\)\.source: .*; conventions\.image_orientation"
    ):
        read_mapping(written(tmp_path, text))


def test_a_mapping_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.toml: expected a mapping in TOML; found no such"):
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
def test_a_wrong_licence_is_reported_by_its_field(tmp_path: Path, line: str, message: str) -> None:
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


def tensor(dtype: Any, *shape: int | None) -> Any:
    return tfds.features.Tensor(shape=shape, dtype=dtype)


def image(dtype: Any, channels: int) -> Any:
    return tfds.features.Image(shape=(8, 8, channels), dtype=dtype, encoding_format="png")


TEXT = tfds.features.Text()
ACTION = {"steps/action": tensor(np.float32, 7)}
TASK = {"steps/language_instruction": TEXT}
PLAIN = ACTION | TASK

# what is declared, and lines of what is printed
ODD: dict[str, tuple[Mapping[str, Any], list[str]]] = {
    "float64": (
        {"steps/observation/state": tensor(np.float64, 8), **PLAIN},
        [
            "[[features]]  # float64[8]",
            'key = "observation/proprio"  # training reads it by default',
        ],
    ),
    "integers that may not fit": (
        {"steps/stamp": tensor(np.int64), "steps/id": tensor(np.uint64, 1), **PLAIN},
        [
            "[[features]]  # int64[]  # CHECK: must fit int32",
            "[[features]]  # uint64[1]  # CHECK: must fit int32",
        ],
    ),
    "integers that do fit": (
        {"steps/stamp": tensor(np.uint16), **PLAIN},
        ["[[features]]  # uint16[]"],
    ),
    "depth": (
        {
            "steps/observation/depth": image(np.uint16, 1),
            "steps/observation/range": image(np.float32, 1),
            "steps/observation/mask": image(np.uint8, 1),
            "steps/observation/image": image(np.uint8, 3),
            **PLAIN,
        },
        [
            'source = "steps/observation/depth"\ncolumn = "steps"\ndepth = true  # CHECK\n'
            'depth_unit = "mm"  # CHECK: mm or m',
            '    "steps/observation/range",  # CHECK: a camera is left out: float32[8, 8, 1]:'
            " only uint8 images of 3 channels are stored",
            '    "steps/observation/mask",  # CHECK: a camera is left out: uint8[8, 8, 1]:'
            " a grey image; a feature with grey_to_rgb = true takes it",
            'key = "observation/image_primary"  # training reads it by default',
        ],
    ),
    "complex": (
        {"steps/wave": tensor(np.complex64, 2), **PLAIN},
        ['    "steps/wave",  # complex64[2]: only numbers that training reads are stored'],
    ),
    "ragged": (
        {"steps/points": tfds.features.Sequence(tensor(np.float32, 3)), **PLAIN},
        [
            '    "steps/points",  # ragged, nested, encoded or texts:'
            " Sequence(Tensor(shape=(3,), dtype=float32)) of any length"
        ],
    ),
    "unknown length": (
        {"steps/points": tensor(np.float32, None, 3), **PLAIN},
        [
            '    "steps/points",  # ragged, nested, encoded or texts:'
            " Tensor(shape=(None, 3), dtype=float32)"
        ],
    ),
    "empty": (
        {"steps/nothing": tensor(np.float32, 0), **PLAIN},
        ['    "steps/nothing",  # float32[0]: empty'],
    ),
    "texts in a tensor": (
        {"steps/words": tensor(np.str_, 3), **PLAIN},
        [
            '    "steps/words",  # ragged, nested, encoded or texts:'
            " Tensor(shape=(3,), dtype=string), of texts"
        ],
    ),
    "nested": (
        {"steps/boxes": tfds.features.Sequence({"x": tensor(np.float32)}), **PLAIN},
        [
            '    "steps/boxes",  # ragged, nested, encoded or texts:'
            " Sequence({ 'x': float32, }) of any length"
        ],
    ),
    "deeply nested": (
        {"steps/boxes": tfds.features.Sequence(dict.fromkeys("abcdefghi", np.float32)), **PLAIN},
        [
            '    "steps/boxes",  # ragged, nested, encoded or texts: Sequence({'
            " 'a': float32, 'b': float32, 'c': float32, 'd': float32, 'e': float32, ..."
        ],
    ),
    "metadata with a blank": (
        {"episode_metadata/my key": tensor(np.float32), **PLAIN},
        ['key = "episode_metadata/my_key"', 'source = "episode_metadata/my key"'],
    ),
    "quotes and brackets": (
        {'steps/a "b" [c]*': tensor(np.float32), 'steps/"[d]"': image(np.uint8, 4), **PLAIN},
        [
            'key = "a__b___c__"',
            'source = "steps/a \\"b\\" [c]*"',
            '    "steps/\\"[[]d]\\"",  # CHECK: a camera is left out: uint8[8, 8, 4]:'
            " only uint8 images of 3 channels are stored",
        ],
    ),
    "state beside proprio": (
        {
            "steps/observation/state": tensor(np.float32, 8),
            "steps/observation/proprio": tensor(np.float32, 7),
            **PLAIN,
        },
        [
            'key = "observation/proprio"  # training reads it by default\n'
            'source = "steps/observation/proprio"',
            'key = "observation/state"\nsource = "steps/observation/state"',
        ],
    ),
    "image beside image_primary": (
        {
            "steps/observation/image": image(np.uint8, 3),
            "steps/observation/image_primary": image(np.uint8, 3),
            **PLAIN,
        },
        [
            'key = "observation/image"\nsource = "steps/observation/image"\ncolumn = "steps"',
            'source = "steps/observation/image_primary"\ncolumn = "steps"',
        ],
    ),
    "one reward per step and one per episode": (
        {"steps/reward": tensor(np.float32), "reward": tensor(np.float32), **PLAIN},
        ['key = "reward"\nsource = "steps/reward"', 'key = "episode/reward"\nsource = "reward"'],
    ),
    "names that the dataset has itself": (
        {
            "steps/source_id": tensor(np.int32),
            "steps/task": tensor(np.int32),
            "steps/observation/timestep": tensor(np.int32),
            **PLAIN,
        },
        [
            'key = "steps/source_id"\nsource = "steps/source_id"',
            'key = "steps/task"\nsource = "steps/task"',
            'key = "steps/observation/timestep"\nsource = "steps/observation/timestep"',
        ],
    ),
    "columns that are no folders": (
        {
            "steps/dataset.json": tensor(np.float32, 512),
            "steps/.tokens of a model": tensor(np.float32, 512),
            "steps/-": tensor(np.float32, 512),
            "steps/episodes": tensor(np.float32, 512),
            "steps/left/tokens": tensor(np.float32, 512),
            "steps/right/tokens": tensor(np.float32, 512),
            **PLAIN,
        },
        [
            'column = "dataset_json"',
            'column = "_tokens_of_a_model"',
            'column = "_-"',
            'column = "episodes_2"',
            'source = "steps/left/tokens"\ncolumn = "tokens"',
            'source = "steps/right/tokens"\ncolumn = "tokens_2"',
        ],
    ),
    "no action": (
        {"steps/observation/state": tensor(np.float32, 8), **TASK},
        [
            "# gripper_dim = 6  # CHECK: index in the action, once there is one of several",
            "# CHECK: training needs a feature named action; no key looks like one",
            "# CHECK: no camera is stored",
        ],
    ),
    "an action of another name": (
        {"steps/cmd_stamp": tensor(np.int32, 1), "steps/joint_cmd": tensor(np.float64, 7), **TASK},
        [
            "gripper_dim = 6  # CHECK: index in the action; none: delete the line",
            'key = "action"  # CHECK: training needs a feature named action: this one?\n'
            'source = "steps/joint_cmd"',
        ],
    ),
    "an action in parts": (
        {
            "steps/action/base_velocity": tensor(np.float32, 2),
            "steps/action/gripper": tensor(np.bool_),
            "steps/action/rotation_delta": tensor(np.float32, 3),
            "steps/action/terminate_episode": tensor(np.int32, 3),
            "steps/action/world_vector": tensor(np.float64, 3),
            "steps/observation/last_action": tensor(np.float32, 7),
            **TASK,
        },
        [
            "gripper_dim = 6  # CHECK: index in the action; none: delete the line",
            "[[features]]  # float64[3] + float32[3] + bool[]",
            'key = "action"  # CHECK: training needs a feature named action: these keys, in this'
            ' order? Not "steps/action/base_velocity", "steps/action/terminate_episode"?\n'
            'from = ["steps/action/world_vector", "steps/action/rotation_delta",'
            ' "steps/action/gripper"]',
            'key = "action/base_velocity"\nsource = "steps/action/base_velocity"',
        ],
    ),
    "an action of the mobile base alone": (
        {"steps/action/base": tensor(np.float32, 2), **TASK},
        ['key = "action"  # CHECK: training needs a feature named action: this one?'],
    ),
    "an action of two axes": (
        {"steps/action": tensor(np.float32, 10, 7), **TASK},
        [
            'key = "steps/action"\nsource = "steps/action"',
            "# CHECK: training needs a feature named action; steps/action is tensor"
            " float32[10, 7], not of one step",
        ],
    ),
    "an action of one number": (
        {"steps/action": tensor(np.int32), **TASK},
        [
            "[[features]]  # int32[]  # CHECK: learned as numbers, not as codes",
            'key = "action"  # training reads it by default\nsource = "steps/action"',
            "# gripper_dim = 6  # CHECK: index in the action, once there is one of several",
        ],
    ),
    "a ragged action": (
        {"steps/action": tfds.features.Sequence(np.float32), **TASK},
        [
            '    "steps/action",  # CHECK: an action is left out: ragged, nested, encoded or texts:'
            " Sequence(float32) of any length",
        ],
    ),
    "cameras of other names": (
        {
            "steps/observation/hand_image": image(np.uint8, 3),
            "steps/observation/image_0": image(np.uint8, 3),
            "steps/observation/image_1": image(np.uint8, 3),
            **PLAIN,
        },
        [
            'key = "observation/image_primary"  # CHECK: no camera is called image_primary: this'
            ' one?\nsource = "steps/observation/image_0"',
            'key = "observation/hand_image"',
        ],
    ),
    "a camera of pixels": (
        {"steps/observation/front": tensor(np.uint8, 8, 8, 3), **PLAIN},
        [
            'key = "observation/image_primary"  # CHECK: no camera is called image_primary: this'
            ' one?\nsource = "steps/observation/front"\ncolumn = "steps"',
        ],
    ),
    "a list of views": (
        {
            "steps/observation/images": tfds.features.Sequence(image(np.uint8, 3), length=2),
            **PLAIN,
        },
        [
            'source = "steps/observation/images[0]"\ncolumn = "steps"',
            'key = "observation/images_1"\nsource = "steps/observation/images[1]"',
        ],
    ),
    "cameras that cannot be stored": (
        {
            "steps/observation/clip": tfds.features.Sequence(image(np.uint8, 3)),
            "steps/observation/encoded_image": TEXT,
            "steps/observation/raw": tensor(np.uint8, None, None, 3),
            "steps/observation/video": tfds.features.Sequence({"x": image(np.uint8, 3)}),
            "steps/observation/rgba": image(np.uint8, 4),
            **PLAIN,
        },
        [
            '    "steps/observation/encoded_image",  # CHECK: a camera is left out: a text:'
            " only task and source_id are stored",
            '    "steps/observation/rgba",  # CHECK: a camera is left out: uint8[8, 8, 4]:'
            " only uint8 images of 3 channels are stored",
            *(
                f'    "steps/observation/{name}",  # CHECK: a camera is left out: ragged, nested,'
                f" encoded or texts: {words}"
                for name, words in (
                    ("clip", "Sequence(Image(shape=(8, 8, 3), dtype=uint8)) of any length"),
                    ("raw", "Tensor(shape=(None, None, 3), dtype=uint8)"),
                    (
                        "video",
                        "Sequence({ 'x': Image(shape=(8, 8, 3), dtype=uint8), }) of any length",
                    ),
                )
            ),
            "# CHECK: no camera is stored",
        ],
    ),
    "an action of many values": (
        {"steps/action": tensor(np.float32, 600), **TASK},
        ["gripper_dim = 599  # CHECK: index in the action; none: delete the line"],
    ),
    "an action that is an image": (
        {"steps/action": image(np.uint8, 3), **TASK},
        [
            'key = "observation/image_primary"  # CHECK: no camera is called image_primary: this'
            ' one?\nsource = "steps/action"\ncolumn = "steps"',
            "# CHECK: training needs a feature named action; steps/action is image uint8[8, 8, 3],"
            " not of one step",
        ],
    ),
    "one text of another name": (
        {"steps/goal": TEXT, "episode_metadata/file_path": TEXT, **ACTION},
        [
            'task = "steps/goal"  # CHECK: the instruction, which training needs;'
            " no other text could be it",
            'source_id = "episode_metadata/file_path"',
        ],
    ),
    "several texts of other names": (
        {"steps/goal": TEXT, "steps/note": TEXT, **ACTION},
        ['task = "steps/goal"  # CHECK: the instruction, which training needs; or "steps/note"'],
    ),
    "several instructions": (
        {"steps/language_instruction_2": TEXT, **PLAIN},
        [
            "[instruction_from]  # CHECK: at each step the first that is not empty\n"
            'keys = ["steps/language_instruction", "steps/language_instruction_2"]',
        ],
    ),
    "several instructions beside another text": (
        {
            "steps/language_instruction_2": TEXT,
            "steps/task": TEXT,
            "episode_metadata/lang": TEXT,
            **PLAIN,
        },
        [
            "[instruction_from]  # CHECK: at each step the first that is not empty; or"
            ' "episode_metadata/lang", "steps/task"\n'
            'keys = ["steps/language_instruction", "steps/language_instruction_2"]',
            '    "steps/task",  # CHECK: is it the instruction? a text: only task and source_id are'
            " stored",
        ],
    ),
    "joints, pose and gripper": (
        {
            "steps/observation/cartesian_position": tensor(np.float64, 6),
            "steps/observation/gripper_position": tensor(np.float64, 1),
            "steps/observation/gripper_velocity": tensor(np.float64, 1),
            "steps/observation/joint_position": tensor(np.float64, 7),
            "steps/observation/joint_velocity": tensor(np.float64, 7),
            "steps/action_dict/joint_position": tensor(np.float64, 7),
            **PLAIN,
        },
        [
            "[[features]]  # float64[7] + float64[1]",
            'key = "observation/proprio"  # CHECK: no key is called proprio: these, in this order?'
            ' Or "steps/observation/cartesian_position"?\n'
            'from = ["steps/observation/joint_position", "steps/observation/gripper_position"]',
            'key = "observation/joint_velocity"\nsource = "steps/observation/joint_velocity"',
            'key = "observation/cartesian_position"\n'
            'source = "steps/observation/cartesian_position"',
            'rotation = "axis_angle"  # CHECK: axis_angle, euler_xyz, quaternion_xyzw,'
            " quaternion_wxyz, rot6d, rot6d_rows or none",
        ],
    ),
    "pose and gripper without joints": (
        {
            "steps/observation/eef_quat": tensor(np.float32, 4),
            "steps/observation/eef_pos": tensor(np.float32, 3),
            "steps/observation/gripper_closed": tensor(np.bool_),
            "steps/observation/object_pos": tensor(np.float32, 3),
            **PLAIN,
        },
        [
            "[[features]]  # float32[3] + float32[4] + bool[]",
            'key = "observation/proprio"  # CHECK: no key is called proprio: these, in this order?'
            '\nfrom = ["steps/observation/eef_pos", "steps/observation/eef_quat",'
            ' "steps/observation/gripper_closed"]',
        ],
    ),
    "joints of two arms": (
        {
            "steps/observation/right_joint_pos": tensor(np.float32, 6),
            "steps/observation/right_gripper": tensor(np.float32, 1),
            "steps/observation/left_joint_pos": tensor(np.float32, 6),
            "steps/observation/left_gripper": tensor(np.float32, 1),
            **PLAIN,
        },
        [
            'from = ["steps/observation/left_joint_pos", "steps/observation/left_gripper",'
            ' "steps/observation/right_joint_pos", "steps/observation/right_gripper"]',
        ],
    ),
    "a number per joint": (
        {
            **{f"steps/observation/joint_{n}": tensor(np.float32) for n in (1, 2, 10)},
            "steps/observation/joint_2_torque": tensor(np.float32),
            **PLAIN,
        },
        [
            'from = ["steps/observation/joint_1", "steps/observation/joint_2",'
            ' "steps/observation/joint_10"]',
        ],
    ),
    "joints without a gripper": (
        {"steps/observation/qpos": tensor(np.float32, 14), **PLAIN},
        [
            'key = "observation/proprio"  # CHECK: no key is called proprio: this one?\n'
            'source = "steps/observation/qpos"',
        ],
    ),
    "joints beside a whole state": (
        {
            "steps/observation/robot_state": tensor(np.float32, 15),
            "steps/observation/joint_position": tensor(np.float32, 7),
            **PLAIN,
        },
        [
            'key = "observation/robot_state"\nsource = "steps/observation/robot_state"',
            'key = "observation/joint_position"\nsource = "steps/observation/joint_position"',
        ],
    ),
    "an action of joints": (
        {
            "steps/action/joint_position": tensor(np.float32, 7),
            "steps/action/gripper_position": tensor(np.float32, 1),
            **TASK,
        },
        [
            'rotation = "none"  # CHECK: of joints; or axis_angle, euler_xyz, quaternion_xyzw,'
            " quaternion_wxyz, rot6d, rot6d_rows",
            "gripper_dim = 7  # CHECK: index in the action; none: delete the line",
            'from = ["steps/action/joint_position", "steps/action/gripper_position"]',
        ],
    ),
    "an instruction an episode": (
        {"episode_metadata/Prompt": TEXT, "steps/note": TEXT, **ACTION},
        [
            'task = "episode_metadata/Prompt"',
            '    "steps/note",  # a text: only task and source_id are stored',
        ],
    ),
    "texts that are names": (
        {
            "episode_metadata/file_path": TEXT,
            "episode_metadata/episode_id": TEXT,
            "episode_metadata/task_id": TEXT,
            "steps/task_file": TEXT,
            **ACTION,
        },
        [
            'task = ""  # CHECK: the source has no text that could be the instruction; goal images'
            ' alone specify the task then, or give all episodes one: instruction = "..."',
            '    "steps/task_file",  # CHECK: is it the instruction? a text: only task and'
            " source_id are stored",
        ],
    ),
    "an instruction in codes": (
        {"steps/language_instruction": tensor(np.int64), "episode_metadata/id": TEXT, **ACTION},
        [
            'task = ""  # CHECK: steps/language_instruction is int64[], a code and not the'
            " instruction; goal images alone specify the task then, or give all episodes one:"
            ' instruction = "..."',
            'source_id = "episode_metadata/id"',
        ],
    ),
    "an instruction of several texts": (
        {"steps/language_instruction": tensor(np.str_, 3), **ACTION},
        [
            'task = ""  # CHECK: steps/language_instruction cannot be read as the instruction;'
            " goal images alone specify the task then, or give all episodes one: instruction ="
            ' "..."',
        ],
    ),
    "a text of an episode that may be the instruction": (
        {"episode_metadata/operator": TEXT, **ACTION},
        [
            'task = ""  # CHECK: the source has no text that could be the instruction, unless it is'
            ' "episode_metadata/operator"; goal images alone specify the task then, or give all'
            ' episodes one: instruction = "..."',
        ],
    ),
    "nothing but texts": (
        TASK,
        ["features = []  # CHECK: the source has none that can be stored"],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_described_is_accepted(toy: Any, tmp_path: Path, name: str) -> None:
    features, lines = ODD[name]
    source = dataclasses.replace(toy, features=features).open(tmp_path)
    text = describe(source)
    for line in lines:
        assert f"\n{line}\n" in text
    check_accepted(source, text, tmp_path)


def check_accepted(source: RldsSource, text: str, directory: Path) -> SourceMapping:
    """Every key that the dtype law takes is a feature of its own."""
    mapping = read_mapping(written(directory, text))
    computed, plain = compute_source(source, mapping)
    plain.schema(computed)
    named = [key for m in mapping.features for key in m.sources]
    taken = set(named)
    assert len(taken) == len(named)
    texts = {key.key for key in source.keys.values() if key.kind == "text"}
    assert not taken & texts
    return mapping


def test_dimensions_named_by_joints_need_no_rotation(toy: Any, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    for dims, rotation in (
        (("joint_1", "jointGripper"), "none"),
        (("left_waist", "left_gripper"), "none"),
        (("dx", "gripper"), "axis_angle"),
        (("elbow", "ee_yaw"), "axis_angle"),
    ):
        keys = {**source.keys, "steps/action": SourceKey("steps/action", "tensor", (2,), "float32")}
        keys["steps/action"] = dataclasses.replace(keys["steps/action"], dims=dims)
        text = describe(dataclasses.replace(source, keys=keys))
        assert read_mapping(written(tmp_path, text)).conventions.rotation == rotation


def test_a_described_instruction_is_the_first_that_is_not_empty(toy: Any, tmp_path: Path) -> None:
    toy = toy.declaring("steps/language_instruction_2", TEXT)
    toy = toy.holding("steps/language_instruction_2", [b"wipe the table"] * 3)
    toy = toy.having("steps/observation/gripper_open", tensor(np.float32), [1.0, 0.0, 1.0])
    toy = toy.having("steps/observation/joint_pos", tensor(np.float64, 2), np.ones((3, 2)))
    toy = toy.holding("steps/language_instruction", [b""] * 3)
    source = toy.open(tmp_path)
    convert(source, tmp_path / "out", read_mapping(written(tmp_path, describe(source))))
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.manifest.tasks == ("wipe the table",)
    found = dataset.episode(0)["observation"]["proprio"]
    np.testing.assert_array_equal(found, [[1, 1, 1], [1, 1, 0], [1, 1, 1]])


def test_a_text_that_looks_like_a_name_is_no_instruction(toy: Any, tmp_path: Path) -> None:
    for number, text in enumerate([b"ep0.h5", b"17", b"runs/3", b"a1b2c3"]):
        named = toy.holding("steps/language_instruction", [text] * 3)
        assert '\ntask = ""  # CHECK' in describe(named.open(tmp_path / str(number)))
    assert '\ntask = "steps/language_instruction"\n' in describe(toy.open(tmp_path / "toy"))


def test_the_mark_at_the_orientation_names_the_published_libero_sets(mini_rlds: Path) -> None:
    assert (
        'image_orientation = "upright"  # CHECK: upright, flipped_vertically, or rotated_180 for'
        " published LIBERO sets, which are mirrored (docs/format.md)\n"
    ) in describe(open_source(str(mini_rlds)))


def test_what_training_reads_by_default_is_marked(mini_rlds: Path) -> None:
    lines = describe(open_source(str(mini_rlds))).splitlines()
    assert [line.partition("  #")[0] for line in lines if line.endswith("by default")] == [
        'key = "action"',
        'key = "observation/image_primary"',
        'key = "observation/proprio"',
        'key = "observation/image_wrist"',
    ]


LEAVES = st.sampled_from(["action", "image", "state", "proprio", "task", "reward"]) | st.text(
    string.ascii_letters
    + string.digits
    + string.punctuation.replace("/", "")
    + " \x7f\n\u00e9\U0001f916",
    min_size=1,
    max_size=4,
)
PATHS = st.tuples(st.sampled_from(["", "steps/", "steps/observation/"]), LEAVES).map("".join)
DTYPES = ["uint8", "float64", "int64", "bool", "bfloat16", "complex64", "uint16"]
TYPES = st.one_of(
    st.just(("text", (), "utf8")),
    st.tuples(st.just("other"), st.just(()), st.text(max_size=200)),
    st.tuples(
        st.just("tensor"), st.sampled_from([(), (7,), (0,), (32, 16)]), st.sampled_from(DTYPES)
    ),
    st.tuples(st.just("image"), st.sampled_from([(8, 8, 3), (8, 8, 1)]), st.sampled_from(DTYPES)),
)


@settings(max_examples=20)
@given(st.dictionaries(PATHS, TYPES, max_size=12))
def test_any_source_with_a_text_is_described_as_a_valid_mapping(
    tmp_path_factory: pytest.TempPathFactory, types: dict[str, Any]
) -> None:
    directory = tmp_path_factory.mktemp("source")
    types = {**types, "steps/language_instruction": ("text", (), "utf8")}
    keys = {key: SourceKey(key, *types[key]) for key in sorted(types)}
    source = RldsSource(epath.Path(directory), "toy", "1.0.0", "train", keys, ())
    check_accepted(source, describe(source), directory)


def test_a_misspelled_name_of_the_registry_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"brige_dataset: .*--list.*Did you mean bridge_dataset\?"):
        read_mapping("brige_dataset")
