"""LeRobot sets on the hub: a server on this machine answers as the hub does."""

import pathlib

import pytest

from converters.lerobot.lerobot_source import open_lerobot
from converters.sources.open_source import open_source
from pipeline.errors import DataError
from tests.converters.lerobot.lerobot_sets import CAMERA, write_set
from tests.hub_server import HubServer

ADDRESS = "hf://datasets/owner/drawer"
IMAGE = "steps/observation/images/top"


def test_only_what_is_read_is_fetched(hub: HubServer, tmp_path: pathlib.Path) -> None:
    write_set(tmp_path / "drawer", "2.1")
    commit = hub.dataset("owner/drawer").commit_folder(tmp_path / "drawer")
    source = open_source(ADDRESS)
    source.check_files()
    assert set(hub.fetched()) == {"meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl"}
    assert source.name == "drawer"
    assert source.notes["address"] == f"{ADDRESS}@{commit}"
    part = source.select(1, 2)
    [first] = part.episodes(part.shards[0], ["steps/action"])
    assert isinstance(first.values, dict)
    assert hub.fetched()[3:] == ["data/chunk-000/episode_000001.parquet"]
    [whole] = part.episodes(part.shards[0])
    assert hub.fetched()[4:] == [f"videos/chunk-000/{CAMERA}/episode_000001.mp4"]
    local = open_lerobot(tmp_path / "drawer").select(1, 2)
    [expected] = local.episodes(local.shards[0])
    assert whole.values[IMAGE] == expected.values[IMAGE]


def test_what_was_fetched_needs_no_network(
    hub: HubServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "drawer", lengths=(2,))
    commit = hub.dataset("owner/drawer").commit_folder(tmp_path / "drawer")
    source = open_source(ADDRESS)
    expected = [e.values[IMAGE] for e in source.episodes(source.shards[0])]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    for address in (ADDRESS, f"{ADDRESS}@{commit}"):
        again = open_source(address)
        assert [e.values[IMAGE] for e in again.episodes(again.shards[0])] == expected
    with pytest.raises(DataError, match=r"hf://datasets/owner/other: .*found no connection"):
        open_source("hf://datasets/owner/other")


def test_a_file_that_the_hub_lacks_makes_its_episode_a_bad_one(
    hub: HubServer, tmp_path: pathlib.Path
) -> None:
    written = write_set(tmp_path / "drawer", "2.1")
    written.videos[1].unlink()
    hub.dataset("owner/drawer").commit_folder(tmp_path / "drawer")
    source = open_source(ADDRESS)
    values = [episode.values for episode in source.episodes(source.shards[0])]
    assert [isinstance(value, DataError) for value in values] == [False, True, False]
    assert "episode_000001.mp4: expected it in the repository; found no such" in str(values[1])
