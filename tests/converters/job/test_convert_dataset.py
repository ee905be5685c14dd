import dataclasses
import inspect
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from converters.job.convert import convert_dataset
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, SchemaError, UserError
from tests.converters.conftest import Toy

TOML = """
task = "steps/language_instruction"
ignore = ["episode_metadata/file_path"]

[conventions]
image_orientation = "upright"
rotation = "none"
control_frequency_hz = 10.0
no_ops = "kept"

[[features]]
key = "action"
source = "steps/action"
dims = ["x", "y"]

[[features]]
key = "observation/image_primary"
source = "steps/observation/image"
column = "steps"
"""


def test_a_directory_is_converted_by_its_built_in_mapping(
    mini_rlds: pathlib.Path, mini_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    convert_dataset(str(mini_rlds), str(tmp_path / "libero_mini"))
    assert open_dataset(str(tmp_path / "libero_mini")).manifest.shards == (
        open_dataset(str(mini_dataset)).manifest.shards
    )


def test_a_directory_is_converted_by_a_mapping_in_a_file(toy: Toy, tmp_path: pathlib.Path) -> None:
    source, destination = str(toy.write(tmp_path)), str(tmp_path / "converted")
    with pytest.raises(UserError, match="mapping"):
        convert_dataset(source, destination)
    (tmp_path / "toy.toml").write_text(TOML)
    convert_dataset(source, destination, str(tmp_path / "toy.toml"))
    dataset = open_dataset(destination)
    assert dataset.num_episodes == 4
    assert dataset.feature("action").dims == ("x", "y")
    with pytest.raises(SchemaError, match="Did you mean action"):
        dataset.feature("actions")
    with pytest.raises(UserError, match="converted"):
        convert_dataset(source, destination, str(tmp_path / "toy.toml"))
    convert_dataset(source, destination, str(tmp_path / "toy.toml"), overwrite=True)


def test_python_has_the_options_of_the_command(toy: Toy, tmp_path: pathlib.Path) -> None:
    bad = {**toy.episodes[2], "steps/action": np.full((3, 2), np.nan, np.float32)}
    toy = dataclasses.replace(toy, episodes=(*toy.episodes[:2], bad, toy.episodes[3]))
    source, out, mapping = toy.open(tmp_path), str(tmp_path / "out"), str(tmp_path / "toy.toml")
    (tmp_path / "toy.toml").write_text(TOML)
    chosen = {"episodes": (1, 4), "instruction": "lift it", "check_images": True}
    with pytest.raises(DataError, match=r"expected finite values.*bad_episodes skip"):
        convert_dataset(source, out, mapping, **chosen)
    convert_dataset(source, out, mapping, **chosen, bad_episodes="skip")
    manifest = open_dataset(out).manifest
    assert (len(manifest.episode_lengths), manifest.tasks) == (2, ("lift it",))
    assert [skipped.episode for skipped in manifest.skipped_episodes] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_episodes": "leave"}, "expected stop or skip as bad_episodes; found 'leave'"),
        ({"workers": 0}, "expected a whole number of at least 1 as workers; found 0"),
        ({"workers": "2"}, "expected a whole number of at least 1 as workers; found '2'"),
        ({"episodes": "0:2"}, r"two whole numbers, such as \(0, 2\), as episodes; found '0:2'"),
        ({"mapping": {}}, "expected a file or the name of a mapping as mapping; found {}"),
        ({"split": "test"}, "expected split and image_quality with a path alone; found a Rlds"),
        ({"episodes": (0, 5)}, "expected a range A:B of episodes with 0 <= A < B <= 4; found 0:5"),
    ],
)
def test_options_that_do_nothing_are_refused(
    toy: Toy, tmp_path: pathlib.Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        # `unwrap`: where annotations are checked, wrong types are refused before.
        inspect.unwrap(convert_dataset)(toy.open(tmp_path), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_not_utf_8_is_refused(toy: Toy, tmp_path: pathlib.Path) -> None:
    destination = str(tmp_path / os.fsdecode(b"out_\xff"))
    (tmp_path / "toy.toml").write_text(TOML)
    with pytest.raises(UserError, match=r"out_\\udcff: expected a destination whose name is UTF-8"):
        convert_dataset(toy.open(tmp_path), destination, str(tmp_path / "toy.toml"))
    assert not os.path.lexists(destination)
