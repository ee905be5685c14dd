import pathlib
import sys

import pytest

from pipeline.errors import DataError
from pipeline.hub import fetch, fetch_directory

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def empty_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The hub's cache as an empty folder, on a machine without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    return tmp_path


def test_path_is_itself(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(b"model")
    assert fetch(str(path)) == path


def test_missing_path_is_named() -> None:
    with pytest.raises(DataError, match=r"/no/such: expected a file; found none.*hf://owner/name"):
        fetch("/no/such")


@pytest.mark.parametrize(
    "path",
    [
        "hf://",
        "hf://owner",
        "hf://owner/name",
        "hf://owner//file",
        "hf://owner/name@/file",
        "hf://owner/na me/file",
        "hf://owner/a--b/file",
        "hf://owner/name@a/../file",
        "hf://owner/name\n/file",
    ],
)
def test_malformed_hub_path_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(DataError, match=r"expected hf://owner/name.*; found.* Write the") as caught:
        fetch(path)
    assert len(str(caught.value).replace(path, "").splitlines()) == 1


@pytest.mark.parametrize("path", ["hf://owner", "hf://owner/name/folder", "hf://owner/name@"])
def test_malformed_hub_directory_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"expected hf://owner/name"):
        fetch_directory(path, ["config.json"])


def test_cached_file_needs_no_network(empty_cache: pathlib.Path) -> None:
    repository = empty_cache / "models--google-t5--t5-base"
    path = repository / "snapshots" / REVISION / "folder" / "spiece.model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"model")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    assert fetch("hf://google-t5/t5-base/folder/spiece.model").read_bytes() == b"model"
    assert fetch(f"hf://google-t5/t5-base@{REVISION}/folder/spiece.model") == path
    directory = fetch_directory("hf://google-t5/t5-base", ["folder/spiece.model"])
    assert (directory / "folder" / "spiece.model").read_bytes() == b"model"


@pytest.mark.usefixtures("empty_cache")
def test_every_missing_file_of_a_directory_is_named() -> None:
    with pytest.raises(
        DataError, match=r"expected a, b/c in the hub's .*`hf download owner/name a b/c`"
    ):
        fetch_directory("hf://owner/name", ["a", "b/c"])


@pytest.mark.usefixtures("empty_cache")
def test_a_pinned_revision_is_the_one_that_is_fetched() -> None:
    with pytest.raises(DataError, match=r"^hf://owner/name@v1: .*`hf download owner/name a --rev"):
        fetch_directory("hf://owner/name@v1", ["a"])


def test_local_directory_is_itself(tmp_path: pathlib.Path) -> None:
    assert fetch_directory(str(tmp_path), ["a"]) == tmp_path


@pytest.mark.usefixtures("empty_cache")
def test_file_that_cannot_be_fetched_comes_with_the_command() -> None:
    message = "spiece.model in the hub's cache, .*Run `hf download google-t5/t5-base spiece.model`"
    with pytest.raises(DataError, match=message):
        fetch("hf://google-t5/t5-base/spiece.model")


def test_missing_extra_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        DataError,
        match=r"not installed\. In the checkout, run `pip install .* -e '\.\[hub\]'`, then `hf d",
    ):
        fetch("hf://google-t5/t5-base/spiece.model")
