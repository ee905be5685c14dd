"""Depth and cameras of several sizes go from a dataset to a batch, and from a robot to a policy."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from tests.small_dataset import LENGTH, write_dataset
from tests.train.conftest import TensorsConfig, with_data, without_params
from train.dry_run import diagnose
from train.flags import Flags, load_config
from train.policy.observations import Task
from train.policy.policy_inputs import PolicyInputs
from train.policy.policy_spec import PolicySpec
from train.train_config import TrainConfig

RNG = np.random.default_rng(0)
DEPTH = {
    "depth_primary": RNG.integers(0, 2**16, (4 * LENGTH, 4, 6, 1), np.uint16),
    "depth_wrist": RNG.integers(0, 2**16, (4 * LENGTH, 3, 2, 1), np.uint16),
}
"""uint16 millimetres (t y x 1)."""
HEIGHTS = RNG.uniform(0, 3, (4 * LENGTH, 2, 5, 1)).astype(np.float32)
"""float32 metres (t y x 1), stored as a tensor."""
NAMES = ("image_primary", "image_wrist", *DEPTH, "heights")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_config_path: pathlib.Path) -> TrainConfig:
    """A model of a camera and of tensors, some with a shorter window."""
    shapes: dict[str, Any] = {
        "action": (2,),
        "observation/image_primary": (8, 10, 3),
        "observation/image_wrist": (6, 4, 3),
        "observation/heights": HEIGHTS,
    }
    shapes |= {f"observation/{name}": values for name, values in DEPTH.items()}
    path = write_dataset(tmp_path_factory.mktemp("deep") / "set", shapes)
    config = load_config(f"{tiny_config_path}:shallow")
    (primary,) = config.model.images
    wrist = dataclasses.replace(primary, name="wrist", observation_key="image_wrist", image_size=2)
    tensors = {**DEPTH, "heights": HEIGHTS}
    return with_data(
        config,
        datasets=(DatasetConfig(str(path)),),
        observations=NAMES,
        windows=(("depth_wrist", 1),),
        model={
            "vggt": None,
            "images": (primary, wrist),
            "tokenizers": (TensorsConfig(tuple((n, *v.shape[1:]) for n, v in tensors.items())),),
            "head": dataclasses.replace(config.model.head, action_dim=2),
        },
    )


def shown(loader: Loader, step: int) -> dict[str, np.ndarray]:
    """What a robot shows at a step: pixels, and depth in metres as float64."""
    images = loader.read(0, [step])["observation"]
    metres = {name: values[step] / 1000 for name, values in DEPTH.items()}
    return (
        {name: images[name][0, -1] for name in ("image_primary", "image_wrist")}
        | metres
        | {"heights": HEIGHTS[step].astype(np.float64)}
    )


@pytest.fixture(scope="module")
def loader(config: TrainConfig) -> Loader:
    dataset = open_dataset(config.data.datasets[0].path)
    return Loader(config.data, 1, [dataset], lambda _: [1])


@pytest.fixture
def inputs(config: TrainConfig) -> PolicyInputs:
    made = PolicyInputs(PolicySpec.of(without_params(config)))
    made.reset(0, Task("lift the cup", {}))
    return made


def test_depth_of_a_batch_and_of_a_policy_is_the_stored_one_to_the_last_bit(
    loader: Loader, inputs: PolicyInputs
) -> None:
    batch = loader.read(0, [1])["observation"]
    for step in (0, 1):
        inputs.push({0: shown(loader, step)})
    seen = inputs.batch([0]).arrays["observation"]
    shapes = {name: batch[name].shape for name in NAMES}
    assert shapes == {
        "image_primary": (1, 2, 8, 10, 3),
        "image_wrist": (1, 2, 6, 4, 3),
        "depth_primary": (1, 2, 4, 6, 1),
        "depth_wrist": (1, 1, 3, 2, 1),
        "heights": (1, 2, 2, 5, 1),
    }
    for name, millimetres in DEPTH.items():
        stored = millimetres[:2][-batch[name].shape[1] :]
        np.testing.assert_array_equal(np.rint(batch[name][0] * np.float32(1000)), stored)
    np.testing.assert_array_equal(batch["heights"][0], HEIGHTS[:2])
    for name in NAMES:
        assert seen[name].dtype == batch[name].dtype
        np.testing.assert_array_equal(seen[name], batch[name])
        np.testing.assert_array_equal(seen["pad_mask_dict"][name], batch["pad_mask_dict"][name])
    assert loader.spec["observation/depth_primary"].is_depth
    assert not loader.spec["observation/heights"].is_depth


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("uint16", r"depth_wrist: uint16\[3,2,1\] instead of floats in metres: divide milli"),
        ("float32", r"depth_wrist: float32\[3,2,1\] with values from .* instead of metres, 0 "),
    ],
)
def test_millimetres_are_refused_and_change_no_history(
    loader: Loader, inputs: PolicyInputs, dtype: str, message: str
) -> None:
    wrong = shown(loader, 0) | {"depth_wrist": DEPTH["depth_wrist"][0].astype(dtype)}
    with pytest.raises(UserError, match=message):
        inputs.push({0: wrong})
    inputs.push({0: shown(loader, 0)})
    mask = inputs.batch([0]).arrays["observation"]["timestep_pad_mask"]
    assert mask.tolist() == [[False, True]]


@pytest.mark.slow
def test_a_dry_run_reads_a_set_with_depth(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    # Octo's own tokenizers alone: the others are in the batch and are read by nothing.
    config = with_data(config, model={"tokenizers": ()})
    config = dataclasses.replace(config, save_dir=str(tmp_path / "run"))
    found = diagnose(Flags(config))
    assert [one for one in found if one.level == "error"] == []
