"""Datasets pulled from a hub on this machine, whole and in parts, and what stops a pull."""

import dataclasses
import json
import pathlib
import re
import resource
import shutil

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import FILE_NAME
from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import parse_repository
from pipeline.hub.hub_cache import pin
from pipeline.sharing.pull import pull
from pipeline.sharing.pull_plan import is_complete, plan_pull
from pipeline.sharing.remote_dataset import read_remote
from tests.command_line import call
from tests.hub_server import HubRepository, HubServer, sha256_of
from tests.processes import Command
from tests.small_dataset import write_dataset

ADDRESS = "hf://datasets/owner/name"
EPISODES, STEPS = "episodes/0.arrayrecord", "steps/0.arrayrecord"
SHAPES = {"action": (7,), "observation/proprio": (3,), "observation/image_primary": (16, 16, 3)}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_dataset(tmp_path_factory.mktemp("local") / "drawer", SHAPES)


@pytest.fixture
def remote(hub: HubServer, local: pathlib.Path) -> HubRepository:
    repository = hub.dataset()
    repository.commit_folder(local)
    repository.refs["v1"] = repository.refs["main"]
    return repository


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "out"


def run_pull(out: pathlib.Path, *names: str, address: str = ADDRESS) -> None:
    dataset = read_remote(pin(parse_repository(address)))
    pull(plan_pull(dataset, out, names or None))


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.usefixtures("remote")
def test_a_whole_dataset_is_the_one_that_was_pushed(
    local: pathlib.Path, out: pathlib.Path, hub: HubServer
) -> None:
    run_pull(out)
    pulled = files_of(out)
    assert pulled.pop("hub.json")
    assert pulled == files_of(local)
    hub.log.clear()
    run_pull(out)
    assert hub.fetched() == ["dataset.json", "statistics.json"]


def test_only_the_named_columns_are_fetched_and_opened(
    remote: HubRepository, local: pathlib.Path, out: pathlib.Path, hub: HubServer
) -> None:
    run_pull(out, "proprio")
    assert [name for name in hub.fetched() if name.endswith("record")] == [EPISODES]
    dataset = open_dataset(out)
    assert list(dataset.manifest.shards) == ["episodes"]
    assert set(dataset.episode(0)) == {"action", "observation", "instruction"}
    expected = open_dataset(local).episode(1, ["action"])["action"]
    np.testing.assert_array_equal(dataset.episode(1)["action"], expected)
    assert dataset.manifest.digest(["episodes"]) == open_dataset(local).manifest.digest(
        ["episodes"]
    )
    pinned = f"{ADDRESS}@{remote.refs['main']}"
    message = (
        rf"out: expected a feature observation/image_primary; found that its column steps was not "
        rf"pulled\. Pull it: octograin pull {pinned} .*out --columns steps"
    )
    for read in (
        lambda: open_dataset(out, ["observation/image_primary"]),
        lambda: dataset.feature("observation/image_primary"),
        lambda: dataset.step(0, 0, ["observation/image_primary"]),
    ):
        with pytest.raises(DataError, match=message):
            read()
    hub.log.clear()
    run_pull(out, "steps", address=pinned)
    assert [name for name in hub.fetched() if name.endswith("record")] == [STEPS]
    assert (out / FILE_NAME).read_bytes() == (local / FILE_NAME).read_bytes()
    open_dataset(out, ["observation/image_primary"]).step(0, 0)


@pytest.mark.usefixtures("remote")
def test_columns_are_added_to_a_dataset_that_was_edited(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pull(out, "action")
    assert call(monkeypatch, "edit", out, "--set", "conventions.control_frequency_hz=20") == 0
    run_pull(out)
    manifest = open_dataset(out).manifest
    assert list(manifest.shards) == ["episodes", "steps"]
    assert manifest.conventions.control_frequency_hz == 20


@pytest.mark.usefixtures("remote")
def test_an_edit_during_a_pull_is_not_lost(
    out: pathlib.Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pull(out, "action")
    plan = plan_pull(read_remote(pin(parse_repository(ADDRESS))), out)
    assert call(monkeypatch, "edit", out, "--exclude", "1") == 0
    with pytest.raises(UserError, match=r"dataset\.json: .*found one that was changed since\. Run"):
        pull(plan)
    assert open_dataset(out).kept_episodes.tolist() == [0, 2, 3]
    hub.log.clear()
    run_pull(out)
    assert [name for name in hub.fetched() if name.endswith("record")] == []
    assert list(open_dataset(out).manifest.shards) == ["episodes", "steps"]
    assert open_dataset(out).kept_episodes.tolist() == [0, 2, 3]


def test_a_killed_pull_fetches_only_what_it_lacks(
    remote: HubRepository, local: pathlib.Path, out: pathlib.Path, hub: HubServer
) -> None:
    size, after = (local / STEPS).stat().st_size, 20_000
    hub.hold(f"GET /lfs/{sha256_of(remote.files[STEPS])}", after)
    command = Command("pipeline.sharing.pull_command", ADDRESS, out)
    part = out / ".pull" / f"{STEPS}.part"
    command.wait_until(
        lambda: (out / EPISODES).exists() and part.exists() and part.stat().st_size == after
    )
    command.kill()
    with pytest.raises(
        DataError, match=r"found an unfinished pull\. Run the same `octograin pull` again"
    ):
        open_dataset(out)
    hub.log.clear()
    Command("pipeline.sharing.pull_command", ADDRESS, out).finish()
    assert [(r.start, r.num_bytes) for r in hub.requests("GET /lfs/")] == [(after, size - after)]
    pulled = files_of(out)
    assert pulled.pop("hub.json")
    assert pulled == files_of(local)


def test_a_begun_pull_of_another_commit_is_named(
    remote: HubRepository, local: pathlib.Path, out: pathlib.Path, hub: HubServer
) -> None:
    hub.fail("GET /lfs/", 404)
    with pytest.raises(DataError, match=r"arrayrecord: .*found 404"):
        run_pull(out)
    first = f"{ADDRESS}@{remote.refs['main']}"
    remote.commit({**remote.files, "README.md": b"new"})
    before = files_of(out)
    with pytest.raises(UserError, match=rf"a begun pull of {first}\. To complete .* pull {first} "):
        run_pull(out)
    assert files_of(out) == before
    hub.faults.clear()
    run_pull(out, address=first)
    assert (out / STEPS).read_bytes() == (local / STEPS).read_bytes()
    with pytest.raises(UserError, match=rf"out: expected a missing or empty .*; found {first}\. "):
        run_pull(out)


@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize(
    ("name", "found"),
    [(FILE_NAME, "a dataset that was not pulled"), ("notes.txt", "other files, such as notes.txt")],
)
def test_a_directory_of_others_is_left_alone(out: pathlib.Path, name: str, found: str) -> None:
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=rf"out: expected .*; found {found}.*nothing was changed"):
        run_pull(out)
    assert files_of(out) == {name: b"mine"}


@pytest.mark.usefixtures("remote")
def test_a_file_or_a_bucket_is_no_directory_to_pull_into(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: expected .*; found a file or a broken link\. Name"):
        run_pull(tmp_path / "file")
    assert call(monkeypatch, "pull", ADDRESS, "gs://bucket/out") == 2
    assert "gs://bucket/out: expected a directory on a disk" in capsys.readouterr().err


@pytest.mark.usefixtures("remote")
def test_tokens_of_images_that_were_left_say_what_to_pull(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_pull(out, "action")
    assert call(monkeypatch, "tokens", out, "--weights", "random:tiny", "--cameras", "primary") == 2
    assert f"{out} --columns steps" in capsys.readouterr().err


def test_a_shard_that_is_not_the_one_of_the_manifest_is_refused(
    remote: HubRepository, tmp_path: pathlib.Path, out: pathlib.Path
) -> None:
    other = write_dataset(
        tmp_path / "other", {**SHAPES, "observation/proprio": np.zeros((24, 3), np.float32)}
    )
    assert (other / EPISODES).stat().st_size == len(remote.files[EPISODES])
    remote.commit({**remote.files, EPISODES: (other / EPISODES).read_bytes()})
    message = (
        rf"{EPISODES}: expected 4 records with the checksum .*, by dataset.json; found 4 .*own"
    )
    with pytest.raises(DataError, match=message):
        run_pull(out)
    assert list(out.rglob(EPISODES)) == []
    assert not (out / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {STEPS: None, "steps/1": b""},
            rf"expected every file that its dataset.json lists; found no {STEPS}\. ",
        ),
        ({STEPS: b"short"}, rf"found {STEPS} of 5 bytes, not \d+\. Name another revision"),
        (
            {FILE_NAME: None},
            r"expected a dataset of this project, with a dataset\.json; found none",
        ),
        ({FILE_NAME: b"[]"}, r"dataset\.json: expected a JSON object; found list, not an object"),
        (
            {FILE_NAME: None, "meta/info.json": b""},
            rf"LeRobot dataset: octograin convert {ADDRESS}@",
        ),
    ],
)
def test_a_repository_that_is_no_whole_dataset_is_refused(
    remote: HubRepository, out: pathlib.Path, changes: dict[str, bytes | None], message: str
) -> None:
    files = {**remote.files, **changes}
    remote.commit({name: content for name, content in files.items() if content is not None})
    with pytest.raises(DataError, match=message):
        run_pull(out)
    assert not out.exists()


@pytest.mark.usefixtures("remote")
def test_a_column_that_is_not_there_is_named(out: pathlib.Path) -> None:
    message = r"columns: expected columns among episodes, steps, .*; found image_primry\. Did you"
    with pytest.raises(UserError, match=message):
        run_pull(out, "image_primry")
    assert not out.exists()


@pytest.mark.usefixtures("remote")
def test_a_disk_without_room_is_reported_before_anything_is_fetched(
    out: pathlib.Path, hub: HubServer
) -> None:
    plan = plan_pull(read_remote(pin(parse_repository(ADDRESS))), out)
    huge = tuple(dataclasses.replace(file, num_bytes=10**18) for file in plan.files)
    with pytest.raises(
        UserError, match=r"out: expected 2,000,000,000\.0 GB on its disk; found .* fre"
    ):
        pull(dataclasses.replace(plan, files=huge))
    assert not out.exists()
    assert hub.downloaded() == 0


def _small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("remote")
def test_a_disk_that_fills_up_ends_a_pull_which_resumes(
    out: pathlib.Path, local: pathlib.Path, hub: HubServer
) -> None:
    command = Command("pipeline.sharing.pull_command", ADDRESS, out, before=_small_files_only)
    assert re.fullmatch(
        r"error: .*arrayrecord: expected a destination that can be written; found File too large\. "
        r"Allow writing, free space, or name another destination\.\n",
        command.finish(2).stderr,
    )
    hub.log.clear()
    run_pull(out)
    assert {request.start for request in hub.requests("GET /lfs/")} <= {0, 10_000}
    assert 10_000 in {request.start for request in hub.requests("GET /lfs/")}
    assert (out / STEPS).read_bytes() == (local / STEPS).read_bytes()


@pytest.mark.usefixtures("remote")
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(
    out: pathlib.Path, local: pathlib.Path, hub: HubServer
) -> None:
    hub.fail("GET /datasets/owner/name/resolve/.*arrayrecord", 503, times=1)
    run_pull(out)
    assert (out / STEPS).read_bytes() == (local / STEPS).read_bytes()


@pytest.mark.usefixtures("remote")
def test_a_conversion_may_replace_a_pulled_directory(
    out: pathlib.Path, short_rlds: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pull(out, "action")
    assert call(monkeypatch, "convert", short_rlds, out, "--mapping", "libero", "--overwrite") == 0
    assert not (out / "hub.json").exists()
    assert open_dataset(out).manifest.name == "libero_mini"


@pytest.mark.usefixtures("remote")
def test_a_folder_that_may_not_be_written_is_reported(tmp_path: pathlib.Path, as_nobody) -> None:
    plan = plan_pull(read_remote(pin(parse_repository(ADDRESS))), tmp_path / "closed" / "out")
    (tmp_path / "closed").mkdir(mode=0o555)
    with as_nobody(), pytest.raises(UserError, match=r"closed/out.*found Permission denied"):
        pull(plan)


@pytest.mark.usefixtures("remote")
def test_a_truncated_shard_is_fetched_again(
    local: pathlib.Path, out: pathlib.Path, hub: HubServer
) -> None:
    run_pull(out)
    assert is_complete(out, None)
    (out / STEPS).write_bytes(b"short")
    assert not is_complete(out, None)
    assert is_complete(out, ["action"])
    hub.log.clear()
    run_pull(out)
    assert [name for name in hub.fetched() if name.endswith("record")] == [STEPS]
    assert (out / STEPS).read_bytes() == (local / STEPS).read_bytes()


@pytest.mark.usefixtures("remote")
def test_a_corrupt_note_is_reported(out: pathlib.Path) -> None:
    run_pull(out, "action")
    note = out / "hub.json"
    note.write_text(note.read_text().replace("owner", "0wner"))
    with pytest.raises(DataError, match=r"hub\.json: .*checksum.*remove it"):
        open_dataset(out, ["observation/image_primary"])


def test_the_command_lists_pulls_and_says_what_it_did(
    remote: HubRepository,
    out: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pinned = f"{ADDRESS}@{remote.refs['main']}"
    assert call(monkeypatch, "pull", f"{ADDRESS}@v1", out, "--columns", "action", "--dry_run") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == f"{pinned}: drawer, 4 episodes, 24 steps"
    assert [line.split()[0] for line in listed[1:3]] == ["episodes", "steps"]
    assert "to fetch  action, observation/proprio" in listed[1]
    assert "left out  observation/image_primary" in listed[2]
    assert not out.exists()
    assert call(monkeypatch, "pull", f"{ADDRESS}@v1", out, "--columns", "action") == 0
    assert capsys.readouterr().out.endswith(f"kB of {pinned}; columns episodes\n")
    assert call(monkeypatch, "pull", f"{ADDRESS}@v1", out, "--columns", "action") == 0
    assert capsys.readouterr().out == f"{out}: nothing to fetch of {pinned}; columns episodes\n"
    assert call(monkeypatch, "inspect", out, "--json") == 0
    left = {"steps": ["observation/image_primary"]}
    assert json.loads(capsys.readouterr().out)["hub"] == {"address": pinned, "left": left}
    assert call(monkeypatch, "inspect", out) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"pulled from {pinned}" in text
    assert "Left on the hub steps observation/image_primary to fetch octograin pull" in text
    assert "--columns steps Features" in text
    shutil.rmtree(out)
    assert call(monkeypatch, "pull", "owner/name", out) == 2
    refused = capsys.readouterr().err
    assert "octograin pull: expected an address: hf://datasets/o" in refused
    assert f"found owner/name {out}. See" in refused


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_help_has_both_arguments(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, verb, "--help") == 0
    assert "ADDRESS is hf://datasets/owner/name" in capsys.readouterr().out
    assert call(monkeypatch, verb, ADDRESS, "--help") == 0
    order = "ADDRESS DIR" if verb == "pull" else "DIR ADDRESS"
    assert f"octograin {verb} [-h] {order} [" in capsys.readouterr().out
