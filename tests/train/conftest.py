"""A run that is small enough for a test."""

import dataclasses
import pathlib

import pytest

from pipeline.config import DatasetConfig
from train.config import TrainConfig
from train.flags import load_config

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
