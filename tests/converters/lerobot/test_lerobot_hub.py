"""LeRobot sets on the hub: a server on this machine answers as the hub does."""

import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from huggingface_hub import constants

from converters.lerobot.lerobot_source import open_lerobot
from converters.sources.open_source import open_source
from pipeline.errors import DataError
from tests.converters.lerobot.lerobot_sets import CAMERA, write_set

ADDRESS = "hf://datasets/owner/drawer"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = "steps/observation/images/top"


class Hub(http.server.BaseHTTPRequestHandler):
    """One dataset, of one commit."""

    folder: ClassVar[pathlib.Path] = pathlib.Path()
    fetched: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test prints no log."""

    def _entry(self, path: pathlib.Path) -> dict[str, object]:
        name, size = path.relative_to(self.folder).as_posix(), path.stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": "0" * 40}

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        body, name = b"", ""
        if path.startswith("/api/datasets/owner/drawer/tree/"):
            files = [one for one in (self.folder / "meta").rglob("*") if one.is_file()]
            body = json.dumps([self._entry(one) for one in files]).encode()
        elif path.startswith("/datasets/owner/drawer/resolve/"):
            name = path.removeprefix("/datasets/owner/drawer/resolve/").partition("/")[2]
            if not (self.folder / name).is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = (self.folder / name).read_bytes()
        known = name or body or path == "/"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)
            if name:
                self.fetched.append(name)


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub with a set of two cameras' worth of files, and an empty cache."""
    monkeypatch.setattr(Hub, "folder", tmp_path / "drawer")
    monkeypatch.setattr(Hub, "fetched", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_what_is_read_is_fetched(hub: type[Hub]) -> None:
    write_set(hub.folder, "2.1")
    source = open_source(ADDRESS)
    source.check_files()
    assert set(hub.fetched) == {"meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl"}
    assert source.name == "drawer"
    assert source.notes["address"] == f"{ADDRESS}@{COMMIT}"
    part = source.select(1, 2)
    [first] = part.episodes(part.shards[0], ["steps/action"])
    assert isinstance(first.values, dict)
    assert hub.fetched[3:] == ["data/chunk-000/episode_000001.parquet"]
    [whole] = part.episodes(part.shards[0])
    assert hub.fetched[4:] == [f"videos/chunk-000/{CAMERA}/episode_000001.mp4"]
    local = open_lerobot(hub.folder).select(1, 2)
    [expected] = local.episodes(local.shards[0])
    assert whole.values[IMAGE] == expected.values[IMAGE]


def test_what_was_fetched_needs_no_network(hub: type[Hub], monkeypatch) -> None:
    write_set(hub.folder, lengths=(2,))
    address = f"{ADDRESS}@{COMMIT}"
    source = open_source(address)
    expected = [e.values[IMAGE] for e in source.episodes(source.shards[0])]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    again = open_source(address)
    assert [e.values[IMAGE] for e in again.episodes(again.shards[0])] == expected
    with pytest.raises(DataError, match=r"`hf download owner/other --include 'meta/info.json'"):
        open_source("hf://datasets/owner/other")


def test_a_file_that_the_hub_lacks_makes_its_episode_a_bad_one(hub: type[Hub]) -> None:
    written = write_set(hub.folder, "2.1")
    written.videos[1].unlink()
    source = open_source(ADDRESS)
    values = [episode.values for episode in source.episodes(source.shards[0])]
    assert [isinstance(value, DataError) for value in values] == [False, True, False]
    assert "episode_000001.mp4 in the hub's cache, or a network" in str(values[1])
