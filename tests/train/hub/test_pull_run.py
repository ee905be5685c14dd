"""Pulls of runs from a hub on this machine."""

import json
import pathlib
import shutil
import sys

import pytest

from pipeline.errors import DataError, UserError
from tests.hub_server import HubServer
from tests.processes import Command
from train.checkpoints.fetched_run import find_run
from train.hub import pull_run as command
from train.hub.pull_run import pull_run
from train.policy.policy import read_run

ADDRESS = "hf://owner/name"
LARGEST = "checkpoints/2/state/ocdbt"


@pytest.fixture
def on_hub(hub: HubServer, policy_run: pathlib.Path):
    """The tiny run with a file beside it, as `owner/name`."""
    repository = hub.model()
    repository.commit_folder(policy_run)
    repository.commit({**repository.files, "README.md": b"# name", ".gitattributes": b"* text"})
    return repository


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_a_pulled_directory_is_a_run(on_hub, policy_run, tmp_path, monkeypatch, capsys):
    to = tmp_path / "policies" / "name"
    monkeypatch.setattr(sys, "argv", ["octograin pull", ADDRESS, str(to)])
    command.main()
    found = contents(to)
    assert found.pop(".lock") == b""
    assert found.pop("README.md") == b"# name"
    note = json.loads(found.pop("hub.json"))
    assert (note["address"], note["steps"]) == (f"{ADDRESS}@{on_hub.refs['main']}", [1, 2])
    assert found == contents(policy_run)
    assert [path.name for path in to.parent.iterdir()] == ["name"]
    assert read_run(to, 1).step == 1
    assert capsys.readouterr().out == (
        f"{to}: pulled {ADDRESS}@{on_hub.refs['main']}, checkpoints of training step 1, 2\n"
    )


def test_a_killed_pull_resumes(hub, on_hub, policy_run, tmp_path):
    name, content = max(on_hub.files.items(), key=lambda item: len(item[1]))
    held = hub.hold(f"GET .*/{name}", after=len(content) // 2)
    command = Command("train.hub.pull_run", ADDRESS, tmp_path / "to")
    unfinished = tmp_path / f".to.{on_hub.refs['main'][:12]}.pull"
    part = unfinished / f"{name}.part"
    command.wait_until(lambda: part.exists() and part.stat().st_size >= len(content) // 2)
    command.kill()
    held.set()
    assert not (tmp_path / "to").exists()
    there = {path for path in contents(unfinished) if not path.endswith((".part", ".lock"))}
    start, before = part.stat().st_size, len(hub.log)
    pull_run(ADDRESS, tmp_path / "to")
    assert contents(tmp_path / "to").keys() > contents(policy_run).keys()
    again = [r for r in hub.log[before:] if "/resolve/" in r.path]
    assert [r.start for r in again if r.path.endswith(name)] == [start]
    assert not there & {r.path.partition("/resolve/")[2].partition("/")[2] for r in again}
    assert contents(tmp_path / "to")[name] == content


def test_a_disk_without_room_is_reported_before_anything_is_fetched(
    hub, on_hub, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = r"to: expected .* MB on its disk; found 1.0 kB free\. Free space, or name a directory"
    with pytest.raises(UserError, match=message):
        pull_run(ADDRESS, tmp_path / "new" / "to")
    with pytest.raises(UserError, match=r"found 1.0 kB free\. .*OCTOGRAIN_CACHE=FOLDER"):
        find_run(ADDRESS)
    assert list(tmp_path.glob("new")) == []
    assert not [request for request in hub.log if "/resolve/" in request.path]


def test_what_stays_of_pulls_that_were_ended_is_reported(hub, on_hub, tmp_path, caplog):
    name = max(on_hub.files, key=lambda name: len(on_hub.files[name]))
    unfinished = tmp_path / f".to.{on_hub.refs['main'][:12]}.pull"
    other = tmp_path / ".to.0123456789ab.pull"
    for path in (other, tmp_path / ".to.notes.pull"):
        path.mkdir()
    hub.fail(f"GET .*/resolve/.*/{name}", status=403)
    with pytest.raises(DataError):
        pull_run(ADDRESS, tmp_path / "to")
    assert unfinished.is_dir()
    assert [record.getMessage() for record in caplog.records if record.name == "train.hub"] == [
        f"{other}: of a pull of another commit, which was ended; delete it",
        f"{unfinished}: kept, for the same command to resume; delete it if you do not need it",
    ]


def test_what_exists_is_refused_before_the_hub_is_asked(hub, on_hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, found in (("empty", "a directory"), ("file", "a file"), ("link", "a file")):
        with pytest.raises(UserError, match=f"{name}: expected a new directory; found {found}"):
            pull_run(ADDRESS, tmp_path / name)
    assert hub.log == []


def test_each_failure_has_its_message(hub, on_hub, tmp_path, monkeypatch):
    hub.model("owner/other").commit({"model.safetensors": b"1"})
    cases = [
        ("hf://owner/none", "it does not exist, or is private"),
        (f"{ADDRESS}@v9", "a branch, tag or commit"),
        ("hf://owner/other", "a run of octograin, .* found model.safetensors, but no checkpoint"),
        ("hf://datasets/owner/name", "found one of a dataset"),
    ]
    for address, message in cases:
        with pytest.raises(DataError, match=message):
            pull_run(address, tmp_path / "to")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    with pytest.raises(DataError, match="found no connection"):
        pull_run(ADDRESS, tmp_path / "to")
    assert list(tmp_path.iterdir()) == []
