"""Policies fetched from a hub on this machine into the cache."""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from pipeline.parts.part_files import load_parts
from tests.hub_server import READER
from tests.own_modules import forget_modules
from tests.train.conftest import rewrite_item
from train.checkpoints.fetched_run import find_run
from train.checkpoints.initial_weights import find_source, load_pretrained
from train.policy.policy import Policy, read_run
from train.report import __main__ as report

ADDRESS = "hf://owner/name"
PARTS = '''
import dataclasses


@dataclasses.dataclass(frozen=True)
class Keep:
    """Changes nothing."""

    factor: float

    def spec_after(self, spec):
        return spec

    def apply(self, batch, spec, draws):
        return batch
'''


@pytest.fixture
def on_hub(hub, policy_run):
    """A repository with the checkpoints 1 and 2 of the tiny run, as `owner/name`."""
    repository = hub.model()
    repository.commit_folder(policy_run)
    return repository


def entries(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a directory."""
    found = ((path, path.stat()) for path in directory.rglob("*"))
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}


def test_only_the_checkpoint_is_fetched_and_only_once(hub, on_hub, policy_run):
    checkpoint = read_run(ADDRESS)
    commit = on_hub.refs["main"]
    assert (checkpoint.step, checkpoint.address) == (2, f"{ADDRESS}@{commit}")
    assert {name.split("/")[1] for name in hub.fetched()} == {"2"}
    hub.log.clear()
    found = find_run(ADDRESS, 2)
    assert found.directory.is_relative_to(os.environ["HF_HOME"])
    assert [(r.method, r.path) for r in hub.log] == [("GET", "/api/models/owner/name")]
    hub.log.clear()
    assert find_run(f"{ADDRESS}@{commit}", 1).step == 1
    assert {name.split("/")[1] for name in hub.fetched()} == {"1"}
    assert not hub.requests("tree")
    local = read_run(policy_run)
    assert (local.address, local.config) == (None, checkpoint.config)


def test_what_was_fetched_works_without_a_network(hub, on_hub, monkeypatch, caplog):
    on_hub.refs["v1"] = on_hub.refs["main"]
    address = read_run(f"{ADDRESS}@v1").address
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    with caplog.at_level(logging.WARNING):
        assert read_run(f"{ADDRESS}@v1").address == address
    assert caplog.messages == [f"{ADDRESS}@v1: the hub cannot be reached; using {address}"]
    assert read_run(str(address)).step == 2
    with pytest.raises(DataError, match=r"found no connection.*Check the network"):
        read_run(str(address), 1)
    with pytest.raises(DataError, match=r"found no connection"):
        read_run("hf://owner/other")


def test_reading_writes_nothing_into_the_cache(hub, on_hub):
    address = str(read_run(ADDRESS).address)
    before = entries(pathlib.Path(os.environ["HF_HOME"]))
    read_run(address)
    assert entries(pathlib.Path(os.environ["HF_HOME"])) == before


def test_a_cache_that_may_only_be_read_is_enough(hub, on_hub, as_nobody):
    address = str(read_run(ADDRESS).address)
    with as_nobody():
        assert read_run(address).step == 2


def test_corruption_in_the_cache_says_what_to_delete(hub, on_hub):
    path = find_run(ADDRESS).directory / "checkpoints" / "2"
    content = (path / "datasets" / "metadata").read_text()
    (path / "datasets" / "metadata").write_text(content.replace("CC-BY", "CC-BB"))
    remedy = (
        f"Delete {path}, and run the same again: it is then fetched again. If that repeats, it is"
    )
    with pytest.raises(DataError, match=remedy):
        read_run(ADDRESS)


def test_a_fetch_that_failed_continues(hub, on_hub):
    hub.fail("GET .*/2/state/_METADATA", 403)
    with pytest.raises(DataError, match=r"state/_METADATA: expected permission; found 403"):
        read_run(ADDRESS)
    hub.faults.clear()
    before = hub.fetched()
    assert read_run(ADDRESS).step == 2
    assert "checkpoints/2/state/_METADATA" in hub.fetched()[len(before) :]


def test_each_failure_has_its_message(hub, on_hub, policy_run, monkeypatch):
    hub.model("owner/private", is_private=True).commit_folder(policy_run)
    hub.model("owner/gated", is_gated=True)
    hub.model("owner/other").commit({"config.json": b"{}", "model.safetensors": b"1"})
    hub.model("owner/begun").commit(dict.fromkeys(("config.json", "environment.json"), b"{}"))
    cases = [
        (f"{ADDRESS}@v9", None, "a branch, tag or commit of the repository; found none of the n"),
        ("hf://owner/none", None, "it does not exist, or is private"),
        ("hf://owner/private", None, r"for a private one, log in with `hf auth login`"),
        ("hf://owner/gated", None, "the repository is gated"),
        (
            "hf://owner/other",
            None,
            r"with checkpoints/STEP; found config.json, but no .*Name a rep",
        ),
        ("hf://owner/begun", None, r"no checkpoint\. Its upload is incomplete: push it again"),
        ("hf://datasets/owner/name", None, "the address of a policy, .* found one of a dataset"),
        ("hf://owner", None, "Write the owner, the repository"),
        (ADDRESS, 7, r"expected a checkpoint of step 7; found the steps \[1, 2\]"),
    ]
    for address, step, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            read_run(address, step)
        assert str(caught.value).startswith("hf://")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert read_run("hf://owner/private").step == 2


def test_parts_of_its_author_are_named_and_never_executed(
    hub, policy_run, tmp_path, monkeypatch, capsys
):
    run, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(policy_run, run)
    config = json.loads((run / "checkpoints" / "2" / "config" / "metadata").read_text())
    source = {"module": "their_parts", "file": "their_parts.py"}
    source["checksum"] = hashlib.sha256(PARTS.encode()).hexdigest()
    config["data"]["transforms"] = [{"part": "Keep", **source, "fields": {"factor": 3.0}}]
    rewrite_item(run / "checkpoints" / "2", "config", json.dumps(config))
    for folder in (run, run / "parts", run / "checkpoints" / "2"):
        folder.mkdir(exist_ok=True)
        (folder / "their_parts.py").write_text(f"open({str(canary)!r}, 'w').close()\n{PARTS}")
    hub.model().commit_folder(run)
    missing = r"no class Keep of their_parts\.py.* Give the file: --parts their_parts\.py;"
    found = find_run(ADDRESS).directory
    for folder in (found, found / "checkpoints" / "2"):
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend("")
        with pytest.raises(DataError, match=missing):
            read_run(ADDRESS)
    assert not canary.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "their_parts.py").write_text(PARTS)
    load_parts(tmp_path / "mine" / "their_parts.py")
    try:
        (part,) = read_run(ADDRESS).config.data.transforms
        assert (type(part).__name__, part.factor) == ("Keep", 3.0)
    finally:
        forget_modules(tmp_path)
    assert not canary.exists()


def test_a_report_is_not_written_into_the_cache(hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["octograin report", f"{ADDRESS}@v1"])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {ADDRESS}@v1: expected a run directory, into which the report is written; found a "
        f"policy on the hub. Fetch it first: octograin pull {ADDRESS}@v1 DIR, then octograin "
        "report DIR.\n"
    )
    assert hub.log == []


def test_a_run_on_the_hub_is_a_source_of_weights(hub, on_hub, policy_run, monkeypatch):
    expected = read_run(policy_run, 1).params
    found = load_pretrained(ADDRESS, 1)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    assert find_source(ADDRESS, None).step == 2
    hub.model("owner/octo").commit({"config.json": b"{}", "100/default/checkpoint": b""})
    with pytest.raises(UserError, match=r"expected the training step of a .*; found none. Give it"):
        load_pretrained("hf://owner/octo")
    with pytest.raises(UserError, match="it does not exist, or is private"):
        load_pretrained("hf://owner/none", 100)


def test_a_policy_says_which_commit_it_is_of(hub, on_hub, policy_run):
    policy = Policy.from_run(ADDRESS, 1)
    address = f"{ADDRESS}@{on_hub.refs['main']}"
    assert (policy.address, policy.step) == (address, 1)
    assert str(policy).splitlines()[1] == f"from: {address}"
    policy.reset(0, "open the drawer")
    assert policy.infer({0: policy.example_observation()})[0].shape == (4, 7)
