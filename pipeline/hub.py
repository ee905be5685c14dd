"""Finds files named by a path, or by `hf://owner/name[@revision]/file` on the Hugging Face hub.

Those of a dataset are named by `hf://datasets/owner/name[@revision]/file`.
"""

import dataclasses
import fnmatch
import logging
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.bundled import local_path
from pipeline.errors import DataError, install_extra

SCHEME = "hf://"
DATASETS = f"{SCHEME}datasets/"
"""Start of the address of a dataset."""
# Seconds until the hub counts as not reachable.
_TIMEOUT_S = 3.0

_WORD = r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"hf://(?P<kind>datasets/)?(?P<owner>{_WORD})/(?P<name>{_WORD})(@(?P<revision>{_WORD}))?(/(?P<file>.+))?"
)
"""Follows the hub's rules for names; a branch with a slash must be given by its commit."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Repository:
    """A repository on the hub."""

    id: str
    """owner/name."""
    revision: str | None
    """Commit, tag or branch; None: the default branch."""
    is_dataset: bool = False
    """Whether it holds a dataset, and not a model."""

    def __str__(self) -> str:
        pinned = "" if self.revision is None else f"@{self.revision}"
        return f"{DATASETS if self.is_dataset else SCHEME}{self.id}{pinned}"

    @property
    def at(self) -> dict[str, Any]:
        """Arguments that name it for huggingface_hub."""
        kind = "dataset" if self.is_dataset else "model"
        return {"repo_id": self.id, "repo_type": kind, "revision": self.revision}

    def command(self, files: str) -> str:
        """The command that downloads files of it."""
        pinned = "" if self.revision is None else f" --revision {self.revision}"
        kind = " --repo-type dataset" if self.is_dataset else ""
        return f"hf download {self.id} {files}{kind}{pinned}"


def fetch(path: str) -> pathlib.Path:
    """Returns the local path of a file; a file on the hub is downloaded unless it is cached.

    Args:
      path: A path, hf://owner/name[@revision]/file, hf://datasets/owner/name[@revision]/file, or
        octograin://NAME for a bundled file.

    Raises:
      DataError: The file is missing, or is not cached and cannot be downloaded.
    """
    if not path.startswith(SCHEME):
        local = pathlib.Path(local_path(path))
        if local.is_file():
            return local
        raise DataError(
            where=path,
            expected="a file",
            found="none",
            remedy="Name another path, or hf://owner/name/file for one on the hub.",
        )
    repository, file = _parse(path)
    if file is None:
        raise _malformed(path, "hf://owner/name/file", "Write the owner, the repository, the file.")
    return _download(repository, [file]) / file


def fetch_directory(path: str, files: Sequence[str]) -> pathlib.Path:
    """Returns the local path of a directory, after downloading `files` of one on the hub.

    Args:
      path: A path, or hf://owner/name[@revision].
      files: Paths inside it. They are not looked up in a local directory.

    Raises:
      DataError: A file on the hub is not cached and cannot be downloaded.
    """
    if not path.startswith(SCHEME):
        return pathlib.Path(path)
    repository, file = _parse(path)
    if file is not None:
        raise _malformed(path, "hf://owner/name", f"Leave out /{file}.")
    return _download(repository, files)


def fetch_matching(path: str, folder: str, patterns: Sequence[str]) -> tuple[pathlib.Path, str]:
    """Downloads the files in a folder of a repository that match globs, unless they are cached.

    Only that folder is listed: a dataset may have 100,000 files. Without a network, what was
    fetched before is taken.

    Args:
      path: hf://datasets/owner/name[@revision], or without `datasets/` for a model.
      folder: A folder in it.
      patterns: Globs over paths in the repository; `*` matches a slash too.

    Returns:
      The local path of the repository, and its address with the commit that was fetched.

    Raises:
      DataError: A file is not cached and cannot be downloaded, or none matches.
    """
    repository, file = _parse(path)
    if file is not None:
        raise _malformed(path, "hf://datasets/owner/name", f"Leave out /{file}.")

    def download(hub: Any, endpoint: str) -> pathlib.Path:
        if not _is_reachable(endpoint):
            return pathlib.Path(hub.snapshot_download(local_files_only=True, **repository.at))
        tree = hub.HfApi(endpoint=endpoint).list_repo_tree(
            path_in_repo=folder, recursive=True, **repository.at
        )
        names = [entry.path for entry in tree]
        files = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
        if not files:
            raise FileNotFoundError(f"none of its files in {folder}/ is one of these")
        return _local(hub, endpoint, repository, files)

    command = repository.command(" ".join(f"--include '{glob}'" for glob in patterns))
    local = _from_hub(repository, patterns, command, download)
    return local, str(dataclasses.replace(repository, revision=local.name))


def cache_directories() -> list[pathlib.Path]:
    """Returns the folders in which files of the hub may be cached, whether they exist or not."""
    # As in huggingface_hub.constants, which takes long to import and may not be installed.
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")
    found = [f"{home}/huggingface", *(os.environ[name] for name in names if os.environ.get(name))]
    return [pathlib.Path(os.path.expandvars(path)).expanduser() for path in found]


def without_revision(path: str) -> str:
    """Removes the revision from an address on the hub; other paths are returned unchanged.

    hf://owner/name@v1/file    hf://owner/name/file
    """
    return re.sub(r"@[^/]*", "", path, count=1) if path.startswith(SCHEME) else path


def _parse(path: str) -> tuple[_Repository, str | None]:
    """Splits an address into its repository and, if it names one, the file."""
    found = _ADDRESS.fullmatch(path)
    # A file of "../.." would leave the cache.
    if found is None or ".." in pathlib.PurePosixPath(found["file"] or "").parts:
        remedy = "Write the owner, the repository, and @revision to pin a commit or tag of it."
        raise _malformed(path, "hf://owner/name[@revision][/file]", remedy)
    repository = _Repository(
        f"{found['owner']}/{found['name']}", found["revision"], is_dataset=bool(found["kind"])
    )
    return repository, found["file"]


def _malformed(path: str, expected: str, remedy: str) -> DataError:
    return DataError(where=path, expected=expected, found=repr(path), remedy=remedy)


def _download(repository: _Repository, files: Sequence[str]) -> pathlib.Path:
    """Returns the folder of the hub's cache with the files, after downloading missing ones."""
    return _from_hub(
        repository,
        files,
        repository.command(" ".join(files)),
        lambda hub, endpoint: _local(hub, endpoint, repository, files),
    )


def _local(hub: Any, endpoint: str, repository: _Repository, files: Sequence[str]) -> pathlib.Path:
    """Returns the local path of a repository, after downloading those of its files not cached."""
    # Looked up without the network, so a cached file needs none.
    cached = [hub.try_to_load_from_cache(filename=file, **repository.at) for file in files]
    # Not found is None or a marker of the cache, found is a path.
    if not all(isinstance(file, str) for file in cached):
        _log.info("fetching %s: %s", repository, ", ".join(files))
        _check_reachable(endpoint)
        cached = [
            hub.hf_hub_download(filename=file, endpoint=endpoint, **repository.at) for file in files
        ]
    # The folder above the file's own path: files may lie in subfolders.
    depth = len(pathlib.PurePosixPath(files[0]).parts)
    return pathlib.Path(str(cached[0])).parents[depth - 1]


def _from_hub(
    repository: _Repository,
    files: Sequence[str],
    command: str,
    download: Callable[[Any, str], pathlib.Path],
) -> pathlib.Path:
    """What `download` returns for (the package huggingface_hub, the hub's address).

    Raises:
      DataError: The package is not installed, or the download fails; with the command that does it.
    """
    try:
        import huggingface_hub  # noqa: PLC0415  (an extra)
        from huggingface_hub import constants, errors  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            where=str(repository),
            expected="the package huggingface_hub, to read from the hub",
            found="it is not installed",
            remedy=f"{install_extra('hub')}, then `{command}`.",
        ) from error
    try:
        return download(huggingface_hub, constants.ENDPOINT)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            where=str(repository),
            expected=f"{', '.join(files)} in the hub's cache, or a network to fetch it",
            found=" ".join(str(error).split()) or type(error).__name__,
            remedy=f"Run `{command}` where there is a network; the cache may be copied.",
        ) from error


def _is_reachable(endpoint: str) -> bool:
    """Whether the hub answers."""
    try:
        _check_reachable(endpoint)
    except OSError:
        return False
    return True


def _check_reachable(endpoint: str) -> None:
    """Raises `OSError` if the hub does not answer; the download itself would retry for 25 s."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as answer:
        # An answer of any kind shows that the hub is reachable.
        answer.close()
