"""Addresses on the Hugging Face hub: `hf://[datasets/]owner/name[@revision][/file]`."""

import dataclasses
import pathlib
import re
from typing import Any

from pipeline.errors import DataError

SCHEME = "hf://"
DATASETS = f"{SCHEME}datasets/"
"""Start of the address of a dataset."""
_WORD = r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"hf://(?P<kind>datasets/)?(?P<owner>{_WORD})/(?P<name>{_WORD})(@(?P<revision>{_WORD}))?(/(?P<file>.+))?"
)
"""Follows the hub's rules for names; a branch with a slash must be given by its commit."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository on the hub."""

    id: str
    """owner/name."""
    revision: str | None
    """Commit, tag or branch; None: the default branch."""
    is_dataset: bool = False
    """Whether it holds a dataset, and not a model."""

    def __str__(self) -> str:
        """Its address."""
        pinned = "" if self.revision is None else f"@{self.revision}"
        return f"{DATASETS if self.is_dataset else SCHEME}{self.id}{pinned}"

    @property
    def kind(self) -> str:
        """What huggingface_hub calls its type: `dataset` or `model`."""
        return "dataset" if self.is_dataset else "model"

    @property
    def at(self) -> dict[str, Any]:
        """Arguments that name it for huggingface_hub."""
        return {"repo_id": self.id, "repo_type": self.kind, "revision": self.revision}

    @property
    def is_pinned(self) -> bool:
        """Whether its revision is a commit, whose files never change."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at_revision(self, revision: str | None) -> "Repository":
        """Returns the same repository at another revision."""
        return dataclasses.replace(self, revision=revision)

    def command(self, files: str) -> str:
        """The command that downloads files of it."""
        pinned = "" if self.revision is None else f" --revision {self.revision}"
        kind = " --repo-type dataset" if self.is_dataset else ""
        return f"hf download {self.id} {files}{kind}{pinned}"


def parse_address(path: str) -> tuple[Repository, str | None]:
    """Splits an address into its repository and, if it names one, the file.

    Raises:
      DataError: It is no address of a repository.
    """
    found = _ADDRESS.fullmatch(path)
    # A file of "../.." would leave the cache; nobody is called datasets.
    is_outside = found is not None and ".." in pathlib.PurePosixPath(found["file"] or "").parts
    if found is None or is_outside or found["owner"] == "datasets":
        remedy = "Write the owner, the repository, and @revision to pin a commit or tag of it."
        raise malformed(path, "hf://owner/name[@revision][/file]", remedy)
    repository = Repository(
        f"{found['owner']}/{found['name']}", found["revision"], is_dataset=bool(found["kind"])
    )
    return repository, found["file"]


def parse_repository(path: str, expected: str = "hf://owner/name[@revision]") -> Repository:
    """Reads an address that names a repository without a file.

    Args:
      path: The address.
      expected: What it has to be, for the error.

    Raises:
      DataError: It is no such address.
    """
    repository, file = parse_address(path)
    if file is not None:
        raise malformed(path, expected, f"Leave out /{file}.")
    return repository


def is_dataset_address(path: str) -> bool:
    """Whether a path is the address of a dataset on the hub."""
    return path.startswith(DATASETS)


def without_revision(path: str) -> str:
    """Removes the revision from an address on the hub; other paths are returned unchanged.

    hf://owner/name@v1/file    hf://owner/name/file
    """
    return re.sub(r"@[^/]*", "", path, count=1) if path.startswith(SCHEME) else path


def malformed(path: str, expected: str, remedy: str) -> DataError:
    """The error of an address that is not what it has to be."""
    return DataError(where=path, expected=expected, found=repr(path), remedy=remedy)
