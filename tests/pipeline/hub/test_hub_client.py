"""The client against a hub on this machine: what it asks for, and what it says of its answers."""

import dataclasses
import pathlib

import pytest

from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import Hub, RemoteFile, open_hub
from tests.hub_server import READER, WRITER, HubServer, git_id_of, sha256_of

NAME = Repository("owner/name", None, is_dataset=True)
SHARD = "steps/0.arrayrecord"
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def client(hub: HubServer) -> Hub:
    """A client that waits for milliseconds only."""
    del hub
    return dataclasses.replace(open_hub(), waits_s=(0.001, 0.001))


def listed(client: Hub, at: Repository) -> dict[str, RemoteFile]:
    return {file.path: file for file in client.list_files(at)}


def test_a_revision_is_pinned_and_its_files_are_listed(hub: HubServer, client: Hub) -> None:
    commit = hub.dataset().commit({"dataset.json": b"{}", SHARD: CONTENT})
    at = client.resolve(NAME)
    assert at == NAME.at_revision(commit)
    assert listed(client, at) == {
        "dataset.json": RemoteFile("dataset.json", 2, git_id_of(b"{}")),
        SHARD: RemoteFile(
            SHARD, len(CONTENT), listed(client, at)[SHARD].git_id, sha256_of(CONTENT)
        ),
    }
    assert [file.path for file in client.list_files(at, "steps")] == [SHARD]
    assert client.read(at, "dataset.json") == b"{}"
    hub.log.clear()
    assert client.resolve(at) == at
    assert hub.log == []


def test_a_download_that_was_cut_off_resumes(
    hub: HubServer, client: Hub, tmp_path: pathlib.Path
) -> None:
    hub.dataset().commit({SHARD: CONTENT})
    at = client.resolve(NAME)
    # More often than there are waits, as each brought some bytes.
    hub.cut("GET /lfs/", after=20_000, times=4)
    counts: list[int] = []
    client.download(at, listed(client, at)[SHARD], tmp_path / "a" / "0", counts.append)
    assert (tmp_path / "a" / "0").read_bytes() == CONTENT
    assert sum(counts) == len(CONTENT) == hub.downloaded()
    assert [r.start for r in hub.requests("GET /lfs/")] == [0, 20_000, 40_000, 60_000, 80_000]
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"?", CONTENT + b"?", CONTENT[:-1]])
def test_a_corrupt_download_is_removed(
    hub: HubServer, client: Hub, tmp_path: pathlib.Path, wrong: bytes
) -> None:
    hub.dataset().commit({SHARD: wrong})
    at = client.resolve(NAME)
    declared = dataclasses.replace(
        listed(client, at)[SHARD], num_bytes=len(CONTENT), sha256=sha256_of(CONTENT)
    )
    with pytest.raises(DataError, match=rf"{SHARD}: expected .*, as the hub declares; .*run the s"):
        client.download(at, declared, tmp_path / "0")
    assert list(tmp_path.rglob("0*")) == []


def test_a_corrupt_small_file_is_found(hub: HubServer, client: Hub, tmp_path: pathlib.Path) -> None:
    hub.dataset().commit({"a.json": b"[1]"})
    declared = RemoteFile("a.json", 3, git_id_of(b"[2]"))
    with pytest.raises(DataError, match=r"a\.json: expected git id [0-9a-f]{40}, as the hub decl"):
        client.download(client.resolve(NAME), declared, tmp_path / "a.json")


def test_a_folder_that_may_not_be_written_is_reported(
    hub: HubServer, client: Hub, tmp_path: pathlib.Path
) -> None:
    hub.dataset().commit({"a.json": b"[1]"})
    (tmp_path / "file").touch()
    at = client.resolve(NAME)
    with pytest.raises(UserError, match=r"file.*: expected a destination that can be written; "):
        client.download(at, listed(client, at)["a.json"], tmp_path / "file" / "a.json")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, r"expected an answer of the hub at http.*; found 503 Service Unavailable, several t"),
        (403, r"expected permission; found 403 Forbidden\. Use a token with that right"),
        (418, r"found 418 .*\. Check the address and HF_ENDPOINT"),
    ],
)
def test_what_the_hub_refuses_is_reported(
    hub: HubServer, client: Hub, status: int, message: str
) -> None:
    hub.dataset()
    hub.fail("/api/datasets", status)
    with pytest.raises(DataError, match=message) as caught:
        client.resolve(NAME)
    assert len(str(caught.value).splitlines()) == 1
    assert len(hub.requests("/api/datasets")) == (3 if status == 503 else 1)


def test_a_revision_and_a_file_that_are_missing_are_named(hub: HubServer, client: Hub) -> None:
    hub.dataset()
    with pytest.raises(
        DataError, match=r"name@v9: .*none of the name v9.*/datasets/owner/name/tree"
    ):
        client.resolve(NAME.at_revision("v9"))
    with pytest.raises(DataError, match=r"name, a\.json: expected it in the repository; found no"):
        client.read(NAME, "a.json")
    with pytest.raises(DataError, match=r"name, steps/: expected it in the repository; found no"):
        client.list_files(NAME, "steps")


def test_tokens_open_what_they_may(
    hub: HubServer, client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.dataset(is_private=True)
    repository.commit({SHARD: CONTENT})
    with pytest.raises(DataError, match=r"that may be read without logging in; .*hf auth login"):
        client.resolve(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(
        DataError, match=r"a token that the hub accepts; found 401 .*Invalid cr.*HF_TOKEN; an old"
    ):
        client.resolve(NAME)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert client.read(client.resolve(NAME), SHARD) == CONTENT
    with pytest.raises(DataError, match=r"a dataset repository on the hub; found none of this nam"):
        client.resolve(Repository("owner/other", None, is_dataset=True))
    repository.is_gated = True
    with pytest.raises(DataError, match=r"found the repository is gated.*Ask for access at http"):
        client.read(NAME, SHARD)


def test_without_a_network_the_address_of_the_hub_is_named(hub: HubServer, client: Hub) -> None:
    hub.dataset()
    nowhere = dataclasses.replace(client, endpoint="http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"hub at http://127.0.0.1:9; found no connection \(.*ref"):
        nowhere.resolve(NAME)


def test_a_password_in_the_address_of_the_hub_is_not_shown(client: Hub) -> None:
    nowhere = dataclasses.replace(client, endpoint="http://me:secret@127.0.0.1:9")
    with pytest.raises(DataError, match=r"hub at http://127\.0\.0\.1:9; found no connection"):
        nowhere.resolve(NAME)


def test_a_token_that_is_no_ascii_is_reported(client: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    with pytest.raises(DataError, match=r"expected a token in ASCII; found one with other charact"):
        client.resolve(NAME)


@pytest.mark.parametrize("endpoint", ["http://localhost:99999", "http://[hub"])
def test_a_malformed_address_of_the_hub_is_reported(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DataError, match=r"HF_ENDPOINT: expected the URL of a hub, such as https:/"):
        open_hub()


def test_a_page_to_log_in_to_a_network_is_no_answer(hub: HubServer, client: Hub) -> None:
    hub.fail("/api/datasets", 200)
    with pytest.raises(DataError, match=r"found a page of another site"):
        client.resolve(NAME)


def test_a_public_repository_is_not_taken_for_a_private_one(
    hub: HubServer, client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.dataset()
    with pytest.raises(DataError, match=r"found a public one\. Make it private at .*/name/setti"):
        client.create(NAME, is_private=True)


def test_files_are_uploaded_in_one_commit(
    hub: HubServer, client: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    (tmp_path / "0").write_bytes(CONTENT)
    assert client.create(NAME, is_private=True)
    assert not client.create(NAME, is_private=False)
    assert not client.create(NAME, is_private=True)
    repository = hub.repositories["datasets", "owner/name"]
    assert repository.is_private
    first = client.commit(NAME, {SHARD: tmp_path / "0", "a.json": b"{}"}, [], "Add")
    changed = {SHARD: tmp_path / "0", "b.json": b"[]"}
    second = client.commit(NAME, changed, ["a.json"], "Change", parent=first.revision)
    assert list(repository.commits) == [
        *list(repository.commits)[:1],
        first.revision,
        second.revision,
    ]
    assert repository.files == {
        ".gitattributes": repository.files[".gitattributes"],
        SHARD: CONTENT,
        "b.json": b"[]",
    }
    # A large file that the hub has is not sent again.
    assert len(hub.requests("PUT /lfs/")) == 1
    with pytest.raises(DataError, match=r"name, upload: .* looked at; found a later commit"):
        client.commit(NAME, {"c.json": b""}, [], "Late", parent=first.revision)


def test_an_upload_that_is_refused_leaves_the_repository(
    hub: HubServer, client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.dataset()
    commits = list(repository.commits)
    for token, message in (
        ("", r"expected a token that the hub accepts; found 401"),
        (READER, r"expected permission; found 403 .*rights to write.*To push, it needs the right"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DataError, match=message):
            client.commit(NAME, {SHARD: CONTENT}, [], "Add")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.fail("PUT /lfs/", 403)
    with pytest.raises(DataError, match=r"name, upload: expected permission; found 403"):
        client.commit(NAME, {SHARD: CONTENT}, [], "Add")
    assert list(repository.commits) == commits
