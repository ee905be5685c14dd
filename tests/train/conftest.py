"""Runs that are small enough for a test."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from pipeline.config import DatasetConfig
from pipeline.dataset import open_dataset
from pipeline.loader import Loader
from pipeline.text import load_vocabulary
from train.checkpoints import Checkpoint, read_checkpoint
from train.config import TrainConfig
from train.flags import Flags, load_config
from train.octo.config import LowdimTokenizerConfig
from train.octo.policy import init_params
from train.policy import Policy
from train.run import run

TINY_CONFIG = pathlib.Path(__file__).parents[1] / "data" / "tiny_config.py"


@pytest.fixture(scope="session")
def tiny_config_path() -> pathlib.Path:
    """A config file with the variants `default` and `untokened`."""
    return TINY_CONFIG


@pytest.fixture
def tiny_config(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> TrainConfig:
    """The tiny config on the bundled set, writing below `tmp_path`."""
    config = load_config(str(TINY_CONFIG))
    datasets = (DatasetConfig(str(mini_dataset)),)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, datasets=datasets),
        save_dir=str(tmp_path / "run"),
    )


@pytest.fixture(scope="session")
def policy_config(mini_dataset: pathlib.Path) -> TrainConfig:
    """A tiny model of two cameras and the proprioception."""
    config = load_config(str(TINY_CONFIG))
    primary = config.model.images[0]
    wrist = dataclasses.replace(primary, name="wrist", observation_key="image_wrist", image_size=16)
    lowdims = (LowdimTokenizerConfig("proprio", "proprio", 8),)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            datasets=(DatasetConfig(str(mini_dataset)),),
            observations=("image_primary", "image_wrist", "proprio"),
        ),
        model=dataclasses.replace(
            config.model, images=(primary, wrist), lowdims=lowdims, vggt=None
        ),
        num_steps=2,
        save_interval=1,
    )


@pytest.fixture(scope="session")
def policy_run(
    policy_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The directory of a run of that config, of 2 steps."""
    save_dir = tmp_path_factory.mktemp("policy") / "run"
    return run(Flags(dataclasses.replace(policy_config, save_dir=str(save_dir))))


@pytest.fixture(scope="session")
def served_policy(policy_run: pathlib.Path) -> Policy:
    """The policy of that run; to be served, it may have no clients of another test."""
    policy = Policy(read_checkpoint(policy_run))
    policy.warm_up()
    return policy


def untrained(config: TrainConfig) -> Checkpoint:
    """A checkpoint of a run that has taken no step, with numbers of no meaning."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes)
    vocabulary = load_vocabulary(config.data.vocabulary)
    datasets = [open_dataset(part.path, config.data.keys) for part in config.data.datasets]
    loader = Loader(config.data, 2, datasets, vocabulary.EncodeAsIds)
    return Checkpoint(
        step=0,
        config=config,
        params=params,
        datasets=loader.describe_datasets(),
        vocabulary=pathlib.Path(config.data.vocabulary).read_bytes(),
    )
