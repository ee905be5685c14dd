import pathlib

import pytest

from converters.job.convert import convert_dataset
from pipeline.data.dataset import open_dataset
from pipeline.errors import SchemaError, UserError
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
