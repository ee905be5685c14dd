"""Sources that failed in real use, from ../shared/cases: each becomes what its README expects."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from converters.job.convert import convert
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.sources.open_source import open_source
from converters.verify.verifier import Verifier
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader


@pytest.fixture
def cases(shared: Path) -> Path:
    """The folder of the cases."""
    if not (shared / "cases").exists():
        pytest.skip("the folder `shared/cases` beside the repository is missing")
    return shared / "cases"


def described(case: Path, directory: Path) -> tuple[Dataset, str]:
    """The dataset by the mapping that is proposed for a case, verified, and that mapping."""
    source = open_source(str(case / "src"))
    text = describe(source)
    path = directory / "mapping.toml"
    path.write_text(text)
    convert(source, directory / "out", read_mapping(path))
    dataset = open_dataset(str(directory / "out"))
    findings = Verifier(epath.Path(directory / "out"), dataset.manifest, source).run()
    assert findings.lines == []
    return dataset, text


# by case: lines of the proposed mapping, and features with their shapes
CASES: dict[str, tuple[list[str], dict[str, tuple[int, ...]]]] = {
    "action_dict_of_keys": (
        [
            'from = ["steps/action/world_vector", "steps/action/rotation_delta",'
            ' "steps/action/gripper_closedness_action"]'
        ],
        {"action": (7,), "observation/image_primary": (64, 80, 3)},
    ),
    "bridge_debug": (
        [
            'key = "observation/image_primary"  # CHECK: no camera is called image_primary: this'
            ' one?\nsource = "steps/observation/image_0"'
        ],
        {"action": (7,), "observation/image_primary": (64, 64, 3), "observation/proprio": (7,)},
    ),
    "image_list_of_views": (
        ['source = "steps/observation/images[0]"'],
        {"observation/image_primary": (64, 64, 3), "observation/images_1": (64, 64, 3)},
    ),
    "image_without_shape": ([], {"observation/image_primary": (64, 64, 3)}),
    "instruction_string_array": (
        ['task = "steps/language_instruction"'],
        {"action": (7,), "observation/proprio": (8,)},
    ),
    "no_text_at_all": ([], {"observation/image_primary": (64, 64, 3)}),
    "scalar_action": ([], {"action": (1,), "observation/proprio": (8,)}),
    "steps_as_sequence": (
        ['task = "steps/language_instruction"'],
        {"action": (7,), "observation/image_primary": (64, 64, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_its_readme_expects(cases: Path, tmp_path: Path, name: str) -> None:
    lines, shapes = CASES[name]
    dataset, text = described(cases / name, tmp_path)
    for line in lines:
        assert f"\n{line}\n" in text
    features = {feature.key: feature.shape for _, feature in dataset.manifest.schema.features()}
    assert features.items() >= shapes.items()
    observations = tuple(
        key.removeprefix("observation/") for key in shapes if key.startswith("observation/")
    )
    has_text = name != "no_text_at_all"
    batch = first_batch(dataset, observations, has_text=has_text)
    assert np.isfinite(batch["action"]).all()
    assert batch["action"].shape[-1] == features["action"][0]
    mask = batch["task"]["pad_mask_dict"]
    assert mask["language_instruction"].all() == has_text
    assert has_text or mask["image_primary"].all()


def first_batch(dataset: Dataset, observations: tuple[str, ...], *, has_text: bool) -> Any:
    """A batch of a dataset; one without instructions is conditioned on goal images."""
    conditioning = "language_conditioned" if has_text else "image_conditioned"
    parts = (DatasetConfig(dataset.path),)
    config = DataConfig(datasets=parts, vocabulary="unused", observations=observations)
    config = dataclasses.replace(config, conditioning=conditioning, action_horizon=2)
    loader = Loader(config, 4, [dataset], lambda text: [len(word) for word in text.split()])
    batches = loader.batches()
    try:
        return next(batches).arrays
    finally:
        batches.close()
