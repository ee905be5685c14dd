"""Runs on datasets of the hub: the commits that they use, and what a dry run says of them."""

import dataclasses
import pathlib

import pytest

from pipeline.checksums import write_json
from pipeline.errors import DataError
from pipeline.files import to_json_values
from pipeline.loading.data_config import DatasetConfig
from tests.hub_server import HubRepository, HubServer
from tests.train.conftest import with_data
from train.dry_run import diagnose
from train.flags import Flags
from train.hub_datasets import pin_datasets, to_fetch
from train.run_setup import open_inputs
from train.train_config import TrainConfig

ADDRESS = "hf://datasets/owner/name"


@pytest.fixture
def remote(hub: HubServer, mini_dataset: pathlib.Path) -> HubRepository:
    repository = hub.dataset()
    repository.commit_folder(mini_dataset)
    return repository


@pytest.fixture
def config(tiny_config: TrainConfig) -> TrainConfig:
    return with_data(tiny_config, datasets=(DatasetConfig(ADDRESS),))


def path_of(flags: Flags) -> str:
    return flags.config.data.datasets[0].path


def test_a_run_fetches_what_it_reads_and_records_the_commit(
    remote: HubRepository, hub: HubServer, config: TrainConfig
) -> None:
    flags = pin_datasets(Flags(config, unchanged=config))
    assert path_of(flags) == f"{ADDRESS}@{remote.refs['main']}"
    # No flag has made the difference.
    assert flags.unchanged == flags.config
    inputs = open_inputs(flags.config)
    assert inputs.datasets[0].path == path_of(flags)
    fetched = {name.split("/")[0] for name in hub.fetched() if name.endswith("record")}
    columns = {"episodes", *(_column(inputs, key) for key in config.data.keys)}
    assert fetched == columns


def _column(inputs, key: str) -> str:
    return inputs.datasets[0].manifest.schema.find(key, "")[0].name


def test_a_resumed_run_reads_the_commit_that_it_began_with(
    remote: HubRepository, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pin_datasets(Flags(config))
    directory = pathlib.Path(config.save_dir)
    directory.mkdir()
    write_json(directory / "config.json", to_json_values(first.config))
    remote.commit({**remote.files, "README.md": b"new"})
    assert path_of(pin_datasets(Flags(config))) != path_of(first)
    assert path_of(pin_datasets(Flags(config, resume=True))) == path_of(first)
    open_inputs(first.config)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    resumed = pin_datasets(Flags(config, resume=True))
    assert path_of(resumed) == path_of(first)
    assert open_inputs(resumed.config).datasets[0].num_episodes == 4


def test_runs_on_directories_ask_no_hub(hub: HubServer, tiny_config: TrainConfig) -> None:
    flags = Flags(tiny_config)
    assert pin_datasets(flags) is flags
    assert hub.log == []


def test_a_dry_run_says_what_would_be_fetched_and_fetches_nothing(
    remote: HubRepository, hub: HubServer, config: TrainConfig
) -> None:
    found = [f.text for f in diagnose(Flags(config)) if f.about == "to fetch"]
    assert len(found) == 1
    assert f"MB of {ADDRESS}@{remote.refs['main']}, columns episodes, steps" in found[0]
    assert "without them data is unchecked" in found[0]
    assert hub.downloaded() == 0
    pinned = pin_datasets(Flags(config)).config
    open_inputs(pinned)
    assert list(to_fetch(pinned)) == []


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_missing_is_one_finding(config: TrainConfig) -> None:
    found = [f"{f.about}: {f.text}" for f in diagnose(Flags(config)) if f.level == "error"]
    assert len(found) == 1
    assert found[0].startswith(f"hub: {ADDRESS}: expected a dataset that may be read without log")
    with pytest.raises(DataError, match=r"it does not exist, or is private"):
        pin_datasets(Flags(config))


def test_a_config_with_problems_is_not_looked_up(hub: HubServer, config: TrainConfig) -> None:
    wrong = dataclasses.replace(config)
    object.__setattr__(wrong, "batch_size", 0)
    assert next(f.about for f in diagnose(Flags(wrong)) if f.level == "error") == "config"
    assert hub.log == []
