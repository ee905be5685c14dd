"""Downloads of many files from a hub on this machine."""

import pathlib

import pytest

from pipeline.errors import DataError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import RemoteFile, open_hub
from pipeline.hub.hub_transfer import download_all
from tests.hub_server import HubServer

NAME = Repository("owner/name", None)
FILES = {f"folder/{number}.npz": bytes([number]) * 50_000 for number in range(12)} | {"empty": b""}


def test_what_is_there_is_kept_and_what_was_begun_resumes(
    hub: HubServer, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.model().commit(FILES)
    at = open_hub().resolve(NAME)
    files = open_hub().list_files(at)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "3.npz").write_bytes(FILES["folder/3.npz"])
    (tmp_path / "folder" / "4.npz.part").write_bytes(FILES["folder/4.npz"][:20_000])
    download_all(at, files, tmp_path)
    found = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == FILES
    assert hub.downloaded() == 10 * 50_000 + 30_000
    hub.log.clear()
    download_all(at, files, tmp_path)
    assert (hub.log, capsys.readouterr().err) == ([], "")


def test_the_first_error_ends_the_rest(hub: HubServer, tmp_path: pathlib.Path) -> None:
    hub.model().commit({f"{number}.txt": b"text" for number in range(100)})
    at = open_hub().resolve(NAME)
    files = open_hub().list_files(at)
    hub.fail("GET .*/resolve/", 403)
    with pytest.raises(DataError, match=r"txt: expected permission; found 403"):
        download_all(at, files, tmp_path)
    assert len(hub.requests("GET .*/resolve/")) < 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/a"])
def test_a_path_that_leaves_the_directory_is_refused(
    hub: HubServer, tmp_path: pathlib.Path, path: str
) -> None:
    del hub
    with pytest.raises(DataError, match="expected a path inside the repository; found one that"):
        download_all(NAME, [RemoteFile(path, 1, "0" * 40)], tmp_path / "to")
    assert list(tmp_path.iterdir()) == []
