"""Datasets opened by their address: what is fetched into the cache, once, and what needs no hub."""

import concurrent.futures
import pathlib
import time

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, UserError
from pipeline.hub.cache_places import cache_directories
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader_opening import open_loader, pinned_parts
from pipeline.sharing.cached_dataset import fetch_dataset, pin_address
from tests.command_line import call
from tests.hub_server import HubRepository, HubServer
from tests.small_dataset import write_dataset

ADDRESS = "hf://datasets/owner/name"
EPISODES, STEPS = "episodes/0.arrayrecord", "steps/0.arrayrecord"
SHAPES = {"action": (7,), "observation/proprio": (3,), "observation/image_primary": (16, 16, 3)}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_dataset(tmp_path_factory.mktemp("local") / "drawer", SHAPES)


@pytest.fixture
def remote(hub: HubServer, local: pathlib.Path) -> HubRepository:
    repository = hub.dataset()
    repository.commit_folder(local)
    return repository


def pinned(remote: HubRepository) -> str:
    return f"{ADDRESS}@{remote.refs['main']}"


def shards(hub: HubServer) -> list[str]:
    return [name for name in hub.fetched() if name.endswith("record")]


def test_only_the_columns_of_the_keys_are_fetched_and_once(
    remote: HubRepository, hub: HubServer, local: pathlib.Path
) -> None:
    dataset = open_dataset(ADDRESS, ["action"])
    assert (dataset.path, shards(hub)) == (pinned(remote), [EPISODES])
    assert any(dataset.directory.is_relative_to(folder) for folder in cache_directories())
    here = open_dataset(local)
    np.testing.assert_array_equal(dataset.episode(2)["action"], here.episode(2)["action"])
    # What a run records does not depend on which columns were fetched before.
    assert dataset.manifest == here.manifest
    with pytest.raises(
        UserError, match=r"columns that were fetched, episodes; found some of steps"
    ):
        dataset.step(0, 0, ["observation/image_primary"])
    hub.log.clear()
    both = open_dataset(ADDRESS, ["action", "observation/image_primary"])
    assert shards(hub) == [STEPS]
    image = both.step(1, 2)["observation"]["image_primary"]
    np.testing.assert_array_equal(image, here.step(1, 2)["observation"]["image_primary"])
    hub.log.clear()
    open_dataset(both.path)
    assert hub.log == []


def test_without_a_network_the_cache_is_used(
    remote: HubRepository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_dataset(ADDRESS, ["action"])
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    dataset = open_dataset(ADDRESS, ["action"])
    assert dataset.path == pinned(remote)
    assert f"{ADDRESS}: the hub cannot be reached; using {pinned(remote)}" in caplog.text
    caplog.clear()
    assert open_dataset(pinned(remote), ["action"]).num_steps == 24
    assert caplog.text == ""
    with pytest.raises(DataError, match=r"@.*, dataset.json: expected an answer.*no connection"):
        open_dataset(ADDRESS, ["observation/image_primary"])


@pytest.mark.usefixtures("remote")
def test_several_processes_fetch_once(
    hub: HubServer, local: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = pin_address(ADDRESS)
    held = hub.hold("GET /lfs/", 1000)
    # Each opens the lock on its own, as processes do.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        fetches = [pool.submit(fetch_dataset, address) for _ in range(2)]
        deadline = time.monotonic() + 60
        while "another process fetches it" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        held.set()
        assert len({fetch.result() for fetch in fetches}) == 1
    assert "another process fetches it" in caplog.text
    sizes = [(local / name).stat().st_size for name in (EPISODES, STEPS)]
    assert hub.downloaded() == sum(sizes)


def test_the_state_of_a_loader_does_not_depend_on_where_the_data_lies(
    remote: HubRepository,
    local: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = []
    for path, cache in ((local, "a"), (ADDRESS, "a"), (ADDRESS, "b")):
        monkeypatch.setenv("OCTOGRAIN_CACHE", str(tmp_path / cache))
        config = DataConfig((DatasetConfig(str(path)),), vocabulary="", observations=("proprio",))
        with open_loader(config, 4) as loader:
            state = loader.state(3)
            states.append((state.fingerprint, state.mixture[0].data, state.mixture[0].settings))
            assert state.mixture[0].path == (str(local) if path == local else pinned(remote))
            assert list(loader.describe_datasets()) == [state.mixture[0].path]
    assert states[0] == states[1] == states[2]
    assert (tmp_path / "b" / "datasets--owner--name" / "commits").is_dir()


@pytest.mark.usefixtures("remote")
def test_a_loader_fetches_the_observations_that_it_reads(hub: HubServer) -> None:
    with open_loader(ADDRESS, 2, observations=["proprio"]) as loader:
        assert next(iter(loader))["observation"]["proprio"].shape == (2, 1, 3)
    assert shards(hub) == [EPISODES]
    with open_loader(ADDRESS, 2) as loader:
        assert loader.spec["observation/image_primary"].shape == (2, 1, 16, 16, 3)
    assert shards(hub) == [EPISODES, STEPS]


@pytest.mark.usefixtures("remote")
def test_a_feature_that_the_hub_lacks_is_named() -> None:
    message = r"features action, observation/proprio, .*; found observation/proprioo\. Did you me"
    with pytest.raises(UserError, match=message):
        open_dataset(ADDRESS, ["observation/proprioo"])


@pytest.mark.usefixtures("remote")
def test_a_cached_shard_that_was_truncated_is_fetched_again(hub: HubServer) -> None:
    directory = pathlib.Path(open_dataset(ADDRESS, ["action"]).directory)
    (directory / EPISODES).write_bytes(b"short")
    hub.log.clear()
    open_dataset(ADDRESS, ["action"]).episode(0)
    assert shards(hub) == [EPISODES]


def test_a_resumed_run_keeps_its_commit(
    remote: HubRepository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = pinned(remote)
    assert pin_address(ADDRESS, before) == before
    assert caplog.text == ""
    remote.commit({**remote.files, "README.md": b"new"})
    now = pinned(remote)
    assert pin_address(ADDRESS) == now
    assert pin_address(ADDRESS, before) == before
    assert f"{ADDRESS} is {now} now; the run continues with {before}" in caplog.text
    assert pin_address(now, before) == now
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("HF_HOME", "/no/such/home")
    caplog.clear()
    assert pin_address(ADDRESS, before) == before
    assert "no connection" in caplog.text
    assert f"The run continues with {before}" in caplog.text


def test_commits_of_one_repository_stay_apart_in_a_mixture(remote: HubRepository) -> None:
    first = remote.refs["main"]
    remote.refs["v1"] = first
    remote.commit({**remote.files, "README.md": b"new"})
    parts = tuple(map(DatasetConfig, ("/data", f"{ADDRESS}@v1", ADDRESS)))
    pins = pinned_parts(parts)
    assert [part.path for part in pins] == ["/data", f"{ADDRESS}@{first}", pinned(remote)]
    remote.commit({**remote.files, "README.md": b"newer"})
    assert pinned_parts(parts, pins) == pins
    # Of one commit alone the place does not matter.
    assert pinned_parts(parts[2:], pins[2:]) == pins[2:]
    assert pinned_parts(parts[2:], (*pins[:1], pins[2])) == pins[2:]


@pytest.mark.parametrize("verb", ["tokens", "edit"])
def test_what_changes_a_dataset_asks_for_a_directory(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, verb, ADDRESS) == 2
    assert f"Pull it: octograin pull {ADDRESS} DIR" in capsys.readouterr().err


@pytest.mark.usefixtures("remote")
def test_inspect_fetches_what_it_shows_and_verify_all(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "inspect", ADDRESS) == 0
    assert "observation/image_primary" in capsys.readouterr().out
    assert shards(hub) == [EPISODES]
    assert call(monkeypatch, "verify", ADDRESS) == 0
    assert "4 episodes, 24 steps, 2 tasks: whole" in capsys.readouterr().out
    assert shards(hub) == [EPISODES, STEPS]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OCTOGRAIN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    home = pathlib.Path("/x/huggingface")
    assert cache_directories() == [home, home / "hub", home / "octograin"]
    monkeypatch.setenv("HF_HOME", "/hf")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    monkeypatch.setenv("OCTOGRAIN_CACHE", "/data")
    assert cache_directories() == [pathlib.Path(p) for p in ("/hf", "/hub", "/data")]
