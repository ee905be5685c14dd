"""Finds single files named by a path, or by `hf://owner/name[@revision]/file` on the hub.

Those of a dataset are named by `hf://datasets/owner/name[@revision]/file`. They are kept in the
cache of huggingface_hub, which other programs share.
"""

import fnmatch
import logging
import pathlib
from collections.abc import Sequence

from pipeline.bundled import local_path
from pipeline.errors import DataError
from pipeline.hub.cache_places import hub_cache
from pipeline.hub.hub_address import (
    SCHEME,
    Repository,
    malformed,
    parse_address,
    parse_repository,
)
from pipeline.hub.hub_cache import pin
from pipeline.hub.hub_client import open_hub
from pipeline.hub.hub_errors import import_huggingface_hub, is_unreachable, reported, retrying

_log = logging.getLogger(__name__)


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
    repository, file = parse_address(path)
    if file is None:
        raise malformed(path, "hf://owner/name/file", "Write the owner, the repository, the file.")
    return _local(repository, [file]) / file


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
    return _local(parse_repository(path, "hf://owner/name"), files)


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
    repository = parse_repository(path, "hf://datasets/owner/name")
    repository = pin(repository)
    try:
        listed = [file.path for file in open_hub().list_files(repository, folder)]
    except DataError as error:
        cached = _snapshot(repository)
        if not is_unreachable(error.__cause__) or cached is None:
            raise
        return cached, str(repository)
    files = [name for name in listed if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if not files:
        raise DataError(
            where=str(repository),
            expected=f"files such as {', '.join(patterns)}",
            found=f"none of these among {len(listed):,} in {folder}/",
            remedy="Check the name, and the revision.",
        )
    return _local(repository, files), str(repository)


def _snapshot(repository: Repository) -> pathlib.Path | None:
    """The folder of the cache with files of a repository; None if there is none."""
    hub = import_huggingface_hub(repository)
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415  (an extra)

    try:
        found = hub.snapshot_download(local_files_only=True, cache_dir=hub_cache(), **repository.at)
    except LocalEntryNotFoundError:
        return None
    return pathlib.Path(found)


def _local(repository: Repository, files: Sequence[str]) -> pathlib.Path:
    """Returns the local path of a repository, after downloading those of its files not cached.

    Raises:
      DataError: The package huggingface_hub is not installed, or a download fails; with the
        command that downloads all of them, where there is a network.
    """
    hub, cache = import_huggingface_hub(repository), hub_cache()
    # Looked up without the network, so a cached file needs none.
    cached = [
        hub.try_to_load_from_cache(filename=file, cache_dir=cache, **repository.at)
        for file in files
    ]
    # Not found is None or a marker of the cache, found is a path.
    if not all(isinstance(file, str) for file in cached):
        _log.info("fetching %s: %s", repository, ", ".join(files))
        command = repository.command(" ".join(files))
        cached = [_downloaded(repository, file, command) for file in files]
    # The folder above the file's own path: files may lie in subfolders.
    depth = len(pathlib.PurePosixPath(files[0]).parts)
    return pathlib.Path(str(cached[0])).parents[depth - 1]


def _downloaded(repository: Repository, file: str, command: str) -> str:
    """Returns the path in the cache of a file, after downloading it.

    Args:
      repository: Where it is.
      file: Its path there.
      command: What downloads it and the files beside it, for the error without a network.
    """
    hub, at = import_huggingface_hub(repository), open_hub()
    try:
        with reported(repository, at.endpoint, file):
            # Asks first: the download itself would try a hub that is not there for 25 s.
            url = hub.hf_hub_url(filename=file, endpoint=at.endpoint, **repository.at)
            retrying(
                lambda: hub.get_hf_file_metadata(url, token=None, endpoint=at.endpoint), at.waits_s
            )
            return hub.hf_hub_download(
                filename=file, endpoint=at.endpoint, cache_dir=hub_cache(), **repository.at
            )
    except DataError as error:
        if not is_unreachable(error.__cause__):
            raise
        raise DataError(
            where=error.where,
            expected=error.expected,
            found=error.found,
            remedy=f"{error.remedy} Or run `{command}` where there is a network, and copy the "
            "cache.",
        ) from error
