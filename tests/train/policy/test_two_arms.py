"""An action of two arms goes from a mapping to batches, a policy and the robot's commands."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from converters.job.convert import convert
from converters.mapping.mapping_registry import read_mapping
from pipeline.data.conventions import restore_gripper
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.text import load_vocabulary
from tests.converters.conftest import FEATURES, Toy, episode
from tests.train.conftest import TINY_CONFIG, untrained
from train.flags import load_config
from train.policy import Policy, PolicySpec
from train.policy.parity import compare_episode
from train.train_config import TrainConfig

MAPPING = """
source_id = "episode_metadata/file_path"
[conventions]
image_orientation = "upright"
rotation = "euler_xyz"
control_frequency_hz = 50
no_ops = "kept"
[[conventions.grippers]]
dim = 6
close = -1.0
[[conventions.grippers]]
dim = 13
open = 0.08
close = 0.0
kind = "continuous"
[[conventions.rotations]]
feature = "action"
dim = 3
representation = "euler_xyz"
[[conventions.rotations]]
feature = "action"
dim = 10
representation = "euler_xyz"
[[features]]
key = "action"
source = "steps/action"
[[features]]
key = "observation/image_primary"
source = "steps/observation/image"
column = "steps"
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("arms")
    rng = np.random.default_rng(0)
    action = rng.normal(1.0, 2.0, (4, 3, 14)).astype(np.float32)
    action[..., 6] = rng.choice([-1.0, 1.0], (4, 3))
    action[..., 13] = rng.uniform(0.0, 0.08, (4, 3))
    features = FEATURES | {"steps/action": tfds.features.Tensor(shape=(14,), dtype=np.float32)}
    episodes = [episode(n) | {"steps/action": values} for n, values in enumerate(action)]
    (folder / "mapping.toml").write_text(MAPPING)
    source = Toy(features, tuple(episodes)).open(folder)
    convert(source, folder / "out", read_mapping(folder / "mapping.toml"))
    return open_dataset(str(folder / "out"))


@pytest.fixture(scope="module")
def config(dataset: Dataset) -> TrainConfig:
    config = load_config(f"{TINY_CONFIG}:shallow")
    head = dataclasses.replace(config.model.head, action_dim=14)
    model = dataclasses.replace(config.model, vggt=None, head=head)
    datasets = (DatasetConfig(dataset.path),)
    data = dataclasses.replace(config.data, datasets=datasets, observations=("image_primary",))
    return dataclasses.replace(config, data=data, model=model)


def test_both_grippers_are_mapped_to_0_and_1_and_all_else_is_normalised(
    dataset: Dataset, config: TrainConfig
) -> None:
    encode = load_vocabulary(config.data.vocabulary).EncodeAsIds
    with Loader(config.data, 4, [dataset], encode) as loader:
        actions = next(iter(loader))["action"].reshape(-1, 14)
    assert set(np.unique(actions[:, 6])) == {0.0, 1.0}
    assert 0 <= actions[:, 13].min() < actions[:, 13].max() <= 1
    assert len(np.unique(actions[:, 13])) > 2
    # The stored range is [-6, 8]; normalised actions stay within a few deviations of 0.
    assert np.abs(actions.mean(axis=0)[[0, 7]]).max() < 1


def test_a_policy_gives_each_gripper_its_commands(dataset: Dataset, config: TrainConfig) -> None:
    checkpoint = untrained(config)
    spec = PolicySpec.of(checkpoint)
    assert spec.conventions == dataset.manifest.conventions
    (*_, returned) = compare_episode(checkpoint, spec, dataset, 0)
    assert (returned.key, returned.steps) == ("action", [])

    policy = Policy(checkpoint)
    policy.reset(0, "lift the cup")
    image = np.zeros((8, 8, 3), np.uint8)
    commands = restore_gripper(policy.infer({0: {"image_primary": image}})[0], policy.conventions)
    assert commands.shape == (4, 14)
    assert set(np.unique(commands[:, 6])) <= {-1.0, 1.0}
    assert 0 <= commands[:, 13].min() <= commands[:, 13].max() <= np.float32(0.08)
