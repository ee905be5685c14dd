"""Datasets pushed to a hub on this machine: the commit, the card, and what is refused."""

import pathlib
import re
import shutil

import pytest
import yaml

from converters.edit import Args, edit
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_cache import pin
from pipeline.sharing.dataset_card import licence_fields
from pipeline.sharing.pull import pull
from pipeline.sharing.pull_plan import plan_pull
from pipeline.sharing.push import push
from pipeline.sharing.remote_dataset import read_remote
from tests.command_line import call
from tests.hub_server import READER, WRITER, HubServer
from tests.small_dataset import write_dataset

NAME = Repository("owner/name", None, is_dataset=True)
EPISODES, STEPS = "episodes/0.arrayrecord", "steps/0.arrayrecord"
TEXT = "open | the <b>drawer</b>"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    shapes = {"action": (7,), "observation/image_primary": (16, 16, 3)}
    return write_dataset(tmp_path_factory.mktemp("local") / "drawer", shapes, tasks=[TEXT])


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_dataset(tmp_path_factory.mktemp("local") / "drawer", {"action": (7,)})


@pytest.fixture
def writer(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


def files(hub: HubServer) -> dict[str, bytes]:
    return hub.repositories["datasets", "owner/name"].files


def check_card(writer: HubServer) -> None:
    _, header, text = files(writer)["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "unknown",
        "task_categories": ["robotics"],
        "tags": ["octograin", "arrayrecord"],
        "size_categories": ["n<1K"],
        "viewer": False,
    }
    for line in (
        "# drawer",
        "4 episodes, 24 steps, 1 instruction at 10 Hz; episodes of 6 to 6 steps.",
        "| `action` | `episodes` | float32 | 7 |",
        "| `observation/image_primary` | `steps` | uint8, encoded | 16, 16, 3 |",
        "- image orientation: upright",
        r"| 4 | 24 | open \| the \<b\>drawer\</b\> |",
        "octograin pull hf://datasets/owner/name DIR    # all columns; --columns names some",
    ):
        assert line in text.splitlines()
    assert files(writer)["figure.png"].startswith(b"\x89PNG")


def test_a_push_and_a_pull_give_the_dataset_back(
    writer: HubServer,
    dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = "hf://datasets/owner/name"
    assert call(monkeypatch, "push", dataset, address, "--private") == 0
    repository = writer.repositories["datasets", "owner/name"]
    assert repository.is_private
    pinned = f"{address}@{repository.refs['main']}"
    assert capsys.readouterr().out == f"made a private repository\n{dataset}: pushed as {pinned}\n"
    assert re.fullmatch(r"Push drawer, [0-9a-f]{16}", repository.messages[-1])
    assert call(monkeypatch, "pull", address, tmp_path / "out") == 0
    for name in ("dataset.json", "statistics.json", EPISODES, STEPS):
        assert (tmp_path / "out" / name).read_bytes() == (dataset / name).read_bytes()
    check_card(writer)
    # The same once more changes nothing.
    commits = list(repository.commits)
    capsys.readouterr()
    assert call(monkeypatch, "push", dataset, address) == 0
    shown = [one for one in capsys.readouterr().err.splitlines() if one.startswith("No files have")]
    assert len(shown) <= 1
    assert list(repository.commits) == commits
    assert len(writer.requests("PUT /lfs/")) == 2


@pytest.mark.parametrize(
    ("licences", "header"),
    [
        ({"CC-BY-4.0"}, {"license": "cc-by-4.0"}),
        ({"CC-BY-4.0", "MIT"}, {"license": "other", "license_name": "by-column"}),
        ({"our own"}, {"license": "other", "license_link": "README.md"}),
    ],
)
def test_the_header_has_the_licence(licences: set[str], header: dict[str, str]) -> None:
    assert licence_fields(licences).items() >= header.items()


def test_cards_and_columns_go_only_when_asked_for(
    writer: HubServer, dataset: pathlib.Path, smaller: pathlib.Path
) -> None:
    mine = b"---\nlicense: mit\n---\nmine"
    writer.dataset().commit({"README.md": mine})
    assert push(str(dataset), NAME).is_card_kept
    assert files(writer)["README.md"] == mine
    message = r"expected every column of hf://datasets/owner/name@.*; found none called steps\. Pu"
    with pytest.raises(UserError, match=message):
        push(str(smaller), NAME)
    assert STEPS in files(writer)
    pushed = push(str(smaller), NAME, replace_columns=True, replace_card=True)
    assert (pushed.is_new, pushed.is_card_kept, pushed.num_deleted) == (False, False, 1)
    assert STEPS not in files(writer)
    assert files(writer)[EPISODES] == (smaller / EPISODES).read_bytes()
    assert b"# drawer" in files(writer)["README.md"]
    changed = files(writer)["README.md"].replace(b"# drawer", b"# Drawers")
    writer.repositories["datasets", "owner/name"].commit({**files(writer), "README.md": changed})
    assert push(str(smaller), NAME).is_card_kept


def test_a_repository_with_other_data_is_left_alone(
    writer: HubServer, smaller: pathlib.Path
) -> None:
    writer.dataset().commit({"meta/info.json": b"{}", "README.md": b"mine"})
    with pytest.raises(
        DataError, match=r"found 1 other files, such as meta/info\.json\. Push to a"
    ):
        push(str(smaller), NAME)
    assert set(files(writer)) == {"meta/info.json", "README.md"}


def test_a_corrupt_shard_is_not_pushed(
    writer: HubServer, smaller: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(smaller, tmp_path / "copy")
    content = bytearray((copy / EPISODES).read_bytes())
    content[300] ^= 1
    (copy / EPISODES).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{EPISODES}: expected .*, by dataset\.json; found Corrupted .*copy i"
    ):
        push(str(copy), NAME)
    # No repository is left that was made for it, and one that exists is unchanged.
    assert writer.repositories == {}
    repository = writer.dataset()
    commits = list(repository.commits)
    with pytest.raises(DataError, match=rf"{EPISODES}: expected .*, by dataset\.json"):
        push(str(copy), NAME)
    assert list(repository.commits) == commits


@pytest.mark.parametrize(
    ("token", "message"),
    [("", r"Log in with `hf auth login`"), (READER, r"needs the right to wri")],
)
def test_without_the_right_to_write_nothing_is_sent(
    hub: HubServer,
    smaller: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=message):
        push(str(smaller), NAME)
    assert hub.repositories == {}


def test_excluded_episodes_stay_excluded(
    dataset: pathlib.Path, writer: HubServer, tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(dataset, tmp_path / "copy"))
    push(str(copy), NAME)
    edit(Args(str(copy)))  # adds hashes of the actions
    edit(Args(str(copy), exclude="1"))
    push(str(copy), NAME)
    name = open_dataset(copy).manifest.statistics_name
    assert {file for file in files(writer) if "statistics" in file} == {name}
    assert b"Excluded, and not in the statistics: 1." in files(writer)["README.md"]
    pull(plan_pull(read_remote(pin(NAME)), tmp_path / "pulled"))
    pulled = open_dataset(tmp_path / "pulled")
    assert pulled.kept_episodes.tolist() == [0, 2, 3]
    assert len(pulled.manifest.action_hashes[0]) == 4 * 16
    assert pulled.statistics["action"].count == 18
    # Episodes are taken back here as in any other dataset.
    edit(Args(str(tmp_path / "pulled"), include="1"))
    assert open_dataset(tmp_path / "pulled").statistics["action"].count == 24
