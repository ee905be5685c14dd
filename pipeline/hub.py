"""Files that are named by a path or by `hf://owner/name/file` on the Hugging Face hub."""

import pathlib

from pipeline.errors import DataError

SCHEME = "hf://"
_TIMEOUT_S = 5.0


def fetch(path: str) -> pathlib.Path:
    """The local path of a file; one on the hub is taken from the cache, else downloaded.

    Raises:
      DataError: Where the file is missing, or it is not cached and cannot be downloaded.
    """
    if not path.startswith(SCHEME):
        local = pathlib.Path(path)
        if local.exists():
            return local
        raise DataError(
            where=path,
            expected="a file",
            found="none",
            remedy="Name another path, or hf://owner/name/file for one on the hub.",
        )
    owner, name, file = _split(path)
    return _download(path, f"{owner}/{name}", file)


def _split(path: str) -> tuple[str, str, str]:
    parts = path.removeprefix(SCHEME).split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise DataError(
            where=path,
            expected="hf://owner/name/file",
            found=path,
            remedy="Write the owner, the repository and the file.",
        )
    return parts[0], parts[1], parts[2]


def _download(path: str, repository: str, file: str) -> pathlib.Path:
    command = f"hf download {repository} {file}"
    try:
        import huggingface_hub  # noqa: PLC0415  (an extra)
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            where=path,
            expected="the package huggingface_hub, to read from the hub",
            found="it is not installed",
            remedy=f'Run `pip install "octograin[hub]"`, then `{command}`.',
        ) from error
    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(repository, file, etag_timeout=_TIMEOUT_S)
        )
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DataError(
            where=path,
            expected="the file in the hub's cache, or a network to fetch it",
            found=str(error).splitlines()[0],
            remedy=f"On a machine with a network run `{command}`.",
        ) from error
