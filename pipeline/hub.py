"""Files that are named by a path, or by `hf://owner/name/file` on the Hugging Face hub."""

import logging
import pathlib
import urllib.error
import urllib.request
from collections.abc import Sequence

from pipeline.errors import DataError

SCHEME = "hf://"
_TIMEOUT_S = 3.0

_log = logging.getLogger(__name__)


def fetch(path: str) -> pathlib.Path:
    """The local path of a file; one on the hub comes from its cache, else it is downloaded.

    Args:
      path: A path, or hf://owner/name/file.

    Raises:
      DataError: Where the file is missing, or it is not cached and cannot be downloaded.
    """
    if not path.startswith(SCHEME):
        local = pathlib.Path(path)
        if local.is_file():
            return local
        raise DataError(
            where=path,
            expected="a file",
            found="none",
            remedy="Name another path, or hf://owner/name/file for one on the hub.",
        )
    repository, file = _split(path)
    return _download(repository, [file]) / file


def fetch_directory(path: str, files: Sequence[str]) -> pathlib.Path:
    """The local path of a directory; of one on the hub, `files` are fetched.

    Args:
      path: A path, or hf://owner/name.
      files: Paths inside it. A local directory is not searched for them.

    Raises:
      DataError: Where a file on the hub is not cached and cannot be downloaded.
    """
    if not path.startswith(SCHEME):
        return pathlib.Path(path)
    repository, _ = _split(f"{path}/{files[0]}")
    return _download(repository, files)


def _split(path: str) -> tuple[str, str]:
    """(owner/name, file) of hf://owner/name/file."""
    owner, _, rest = path.removeprefix(SCHEME).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise DataError(
            where=path,
            expected="hf://owner/name/file",
            found=path,
            remedy="Write the owner, the repository and the file.",
        )
    return f"{owner}/{name}", file


def _download(repository: str, files: Sequence[str]) -> pathlib.Path:
    """The folder of the hub's cache that holds the files."""
    path = f"{SCHEME}{repository}"
    command = f"hf download {repository} {' '.join(files)}"
    try:
        import huggingface_hub  # noqa: PLC0415  (an extra)
        from huggingface_hub import constants, errors  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            where=path,
            expected="the package huggingface_hub, to read from the hub",
            found="it is not installed",
            remedy=f"Run `pip install huggingface_hub`, then `{command}`.",
        ) from error
    cached = [huggingface_hub.try_to_load_from_cache(repository, file) for file in files]
    try:
        if not all(isinstance(file, str) for file in cached):
            _log.info("fetching %s: %s", path, ", ".join(files))
            _check_reachable(constants.ENDPOINT)
            cached = [huggingface_hub.hf_hub_download(repository, file) for file in files]
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            where=path,
            expected=f"{', '.join(files)} in the hub's cache, or a network to fetch it",
            found=" ".join(str(error).split()) or type(error).__name__,
            remedy=f"Run `{command}` where there is a network; the cache may be copied.",
        ) from error
    depth = len(pathlib.PurePosixPath(files[0]).parts)
    return pathlib.Path(str(cached[0])).parents[depth - 1]


def _check_reachable(endpoint: str) -> None:
    """Raises `OSError` where the hub does not answer; the download would try for 25 s."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as answer:
        answer.close()
