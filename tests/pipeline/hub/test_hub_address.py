import pytest

from pipeline.errors import DataError
from pipeline.hub.hub_address import (
    Repository,
    parse_address,
    parse_repository,
    without_revision,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "repository", "file"),
    [
        ("hf://a/b", Repository("a/b", None), None),
        ("hf://a/b@v1.0/c/d.json", Repository("a/b", "v1.0"), "c/d.json"),
        ("hf://datasets/a/b", Repository("a/b", None, is_dataset=True), None),
        (f"hf://datasets/a/b@{COMMIT}", Repository("a/b", COMMIT, is_dataset=True), None),
    ],
)
def test_an_address_is_read_and_written(path: str, repository: Repository, file: str) -> None:
    assert parse_address(path) == (repository, file)
    assert path.startswith(str(repository))
    assert repository.is_pinned == (COMMIT in path)


@pytest.mark.parametrize(
    "path",
    [
        "hf://",
        "hf://owner",
        "hf://owner//file",
        "hf://datasets/owner",
        "hf://owner/name@/file",
        "hf://owner/na me/file",
        "hf://owner/a--b/file",
        "hf://owner/name@a/../file",
        "hf://owner/name\n/file",
    ],
)
def test_a_malformed_address_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(DataError, match=r"expected hf://owner/name.*; found.* Write the") as caught:
        parse_address(path)
    assert len(str(caught.value).replace(path, "").splitlines()) == 1


def test_a_file_is_refused_where_a_repository_is_wanted() -> None:
    with pytest.raises(DataError, match=r"hf://a/b/c: expected hf://owner/name.*Leave out /c\."):
        parse_repository("hf://a/b/c")


def test_the_revision_is_removed() -> None:
    assert without_revision("hf://owner/name@v1/file@2") == "hf://owner/name/file@2"
    assert without_revision("/a@b") == "/a@b"
