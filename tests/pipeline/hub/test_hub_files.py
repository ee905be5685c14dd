import pathlib
import sys
from collections.abc import Callable

import pytest

from pipeline.errors import DataError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_cache import pin
from pipeline.hub.hub_files import fetch, fetch_directory, fetch_matching
from tests.hub_server import READER, HubServer

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The hub's cache as an empty folder, on a machine without a network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    return tmp_path


def test_path_is_itself(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(b"model")
    assert fetch(str(path)) == path


def test_missing_path_is_named() -> None:
    with pytest.raises(DataError, match=r"/no/such: expected a file; found none.*hf://owner/name"):
        fetch("/no/such")


@pytest.mark.parametrize("path", ["hf://owner", "hf://owner/name"])
def test_an_address_without_a_file_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"expected hf://owner/name.*; found.* Write the"):
        fetch(path)


@pytest.mark.parametrize("path", ["hf://owner", "hf://owner/name/folder", "hf://owner/name@"])
def test_malformed_hub_directory_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"expected hf://owner/name"):
        fetch_directory(path, ["config.json"])


def test_cached_file_needs_no_network(no_network: pathlib.Path) -> None:
    repository = no_network / "models--google-t5--t5-base"
    path = repository / "snapshots" / REVISION / "folder" / "spiece.model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"model")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    assert fetch("hf://google-t5/t5-base/folder/spiece.model").read_bytes() == b"model"
    assert fetch(f"hf://google-t5/t5-base@{REVISION}/folder/spiece.model") == path
    directory = fetch_directory("hf://google-t5/t5-base", ["folder/spiece.model"])
    assert (directory / "folder" / "spiece.model").read_bytes() == b"model"


def test_a_file_is_fetched_once(hub: HubServer) -> None:
    hub.model("google-t5/t5-base").commit({"spiece.model": b"model", "config.json": b"{}"})
    for _ in range(2):
        assert fetch("hf://google-t5/t5-base/spiece.model").read_bytes() == b"model"
    assert hub.fetched() == ["spiece.model"]


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: HubServer) -> None:
    hub.model().commit({"a": b"1"})
    hub.fail("HEAD .*resolve/main/a", times=1)
    assert fetch("hf://owner/name/a").read_bytes() == b"1"


def test_a_private_file_needs_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model(is_private=True).commit({"a": b"1"})
    with pytest.raises(DataError, match=r"it does not exist, or is private.*`hf auth login`"):
        fetch("hf://owner/name/a")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert fetch("hf://owner/name/a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://owner/name/b", r"name, b: expected it in the repository; found no such file"),
        ("hf://owner/name@v9/a", r"expected a branch, tag or commit .*; found none of the name v9"),
        ("hf://owner/no/a", r"found none: it does not exist, or is private\. Check the name \(hf:"),
    ],
)
def test_what_the_hub_lacks_is_named(hub: HubServer, address: str, message: str) -> None:
    hub.model().commit({"a": b"1"})
    with pytest.raises(DataError, match=message) as caught:
        fetch(address)
    assert "hf download" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_every_missing_file_of_a_directory_is_in_the_command() -> None:
    with pytest.raises(
        DataError, match=r"no connection .*`hf download owner/name a b/c` where there is a network"
    ):
        fetch_directory("hf://owner/name", ["a", "b/c"])


@pytest.mark.usefixtures("no_network")
def test_a_pinned_revision_is_the_one_that_is_fetched() -> None:
    with pytest.raises(DataError, match=r"^hf://owner/name@v1, a: .*`hf download owner/name a --r"):
        fetch_directory("hf://owner/name@v1", ["a"])


def test_local_directory_is_itself(tmp_path: pathlib.Path) -> None:
    assert fetch_directory(str(tmp_path), ["a"]) == tmp_path


def test_files_that_match_come_with_the_commit(hub: HubServer) -> None:
    files = {"meta/info.json": b"{}", "meta/a/b.json": b"[]", "meta/c.txt": b"", "data/0": b""}
    commit = hub.dataset().commit(files)
    local, address = fetch_matching("hf://datasets/owner/name", "meta", ["meta/*.json"])
    assert address == f"hf://datasets/owner/name@{commit}"
    assert sorted(hub.fetched()) == ["meta/a/b.json", "meta/info.json"]
    assert (local / "meta" / "a" / "b.json").read_bytes() == b"[]"
    with pytest.raises(DataError, match=r"found none of these among 3 in meta/"):
        fetch_matching("hf://datasets/owner/name", "meta", ["meta/*.toml"])


def test_a_folder_of_more_than_a_page_is_listed_whole(hub: HubServer) -> None:
    hub.dataset().commit({f"meta/{n:04}.json": b"1" for n in range(1001)})
    fetch_matching("hf://datasets/owner/name", "meta", ["meta/1000.json"])
    assert hub.fetched() == ["meta/1000.json"]


@pytest.mark.parametrize(
    "use",
    [
        lambda: fetch("hf://google-t5/t5-base/spiece.model"),
        lambda: fetch_matching("hf://datasets/owner/name", "meta", ["meta/*"]),
        lambda: pin(Repository("owner/name", None)),
    ],
    ids=["file", "folder", "commit"],
)
def test_missing_extra_comes_with_the_command(
    use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        DataError, match=r"not installed\. In the checkout, run `pip install .* -e '\.\[hub\]'`"
    ):
        use()
