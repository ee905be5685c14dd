"""Turns what goes wrong between this machine and the hub into errors that say what to do."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.errors import DataError, install_extra
from pipeline.hub.hub_address import Repository

T = TypeVar("T")
_PUBLIC = "https://huggingface.co"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_PASSING = (408, 429, 500, 502, 503, 504)
"""Status codes of a server that is busy or starts, where trying again helps."""


def hub_endpoint() -> str:
    """Returns the URL of the hub: `HF_ENDPOINT`, or the public one.

    Raises:
      DataError: It is malformed.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or _PUBLIC).rstrip("/")
    try:
        # The port is checked when it is read.
        _ = urlsplit(endpoint).port
    except ValueError as error:
        raise DataError(
            where="HF_ENDPOINT",
            expected=f"the URL of a hub, such as {_PUBLIC}",
            found=str(error),
            remedy="Correct it, or unset it to use the public hub.",
        ) from error
    return endpoint


def import_huggingface_hub(repository: Repository) -> Any:
    """Returns the package huggingface_hub, which is an extra.

    Raises:
      DataError: It is not installed, or HF_ENDPOINT, which it reads, is no URL.
    """
    hub_endpoint()
    try:
        import huggingface_hub  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise DataError(
            where=str(repository),
            expected="the package huggingface_hub, to reach the hub",
            found="it is not installed",
            remedy=f"{install_extra('hub')}, then run the same again.",
        ) from error
    return huggingface_hub


def check_token(repository: Repository) -> None:
    """Raises a `DataError` if there is no token, without which the hub lets nobody write."""
    if import_huggingface_hub(repository).get_token() is None:
        raise DataError(
            where=str(repository),
            expected="a token that may write there",
            found="none",
            remedy=f"L{_LOG_IN[1:]}.",
        )


@contextlib.contextmanager
def reported(repository: Repository, endpoint: str, what: str) -> Iterator[None]:
    """Turns errors of huggingface_hub inside the block into one that says what to do.

    Args:
      repository: The repository that the block asks for.
      endpoint: The hub's address.
      what: What the block asks for, such as a file of the repository.

    Raises:
      DataError: A request failed, or the package huggingface_hub is not installed.
    """
    import_huggingface_hub(repository)
    from huggingface_hub import errors  # noqa: PLC0415  (an extra)

    # A password in HF_ENDPOINT is not for logs.
    endpoint = re.sub(r"//[^/@]*@", "//", endpoint)
    try:
        yield
    except (
        _http_error(),
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        json.JSONDecodeError,
        # A token that no header can hold.
        UnicodeEncodeError,
        # What Xet, by which the public hub takes large files, raises without a network.
        ConnectionError,
    ) as error:
        where = f"{repository}, {what}" if what else str(repository)
        expected, found, remedy = _described(_root(error), repository, endpoint)
        raise DataError(where=where, expected=expected, found=found, remedy=remedy) from error


def retrying(
    call: Callable[[], T], waits_s: Sequence[float], progress: Callable[[], int] = lambda: 0
) -> T:
    """What `call` returns, calling it again after each wait where the hub was busy or cut it off.

    Args:
      call: Makes the requests.
      waits_s: Seconds between the calls.
      progress: How far the calls came; if it grew, all waits are ahead again.

    Raises:
      HTTPError: The last call failed as well, or trying again cannot help.
    """
    tries, before = 0, progress()
    while True:
        try:
            return call()
        except _http_error() as error:
            if (now := progress()) > before:
                tries, before = 0, now
            if tries == len(waits_s) or not _is_passing(error):
                raise
            time.sleep(waits_s[tries])
            tries += 1


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error means that the hub cannot be reached, or does not work, at this time."""
    if isinstance(error, ImportError):  # huggingface_hub itself is missing
        return False
    from huggingface_hub import errors  # noqa: PLC0415  (an extra)

    if isinstance(error, errors.OfflineModeIsEnabled):
        return True
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, _http_error())


def page_of(repository: Repository, endpoint: str) -> str:
    """The URL of a repository's page."""
    return f"{endpoint}/{'datasets/' if repository.is_dataset else ''}{repository.id}"


def _http_error() -> type[Exception]:
    """The class of errors of requests; its module is httpx or another, by the hub's release."""
    from huggingface_hub.errors import (  # noqa: PLC0415  (an extra)
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    )

    return HTTPError


def _is_passing(error: Exception) -> bool:
    """Whether another try may succeed: not where the hub refuses, or cannot be connected to."""
    from huggingface_hub import errors  # noqa: PLC0415  (an extra)

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in _PASSING
    # A connection that was lost on the way; without a network there is none to lose.
    return "Connect" not in type(error).__name__


def _root(error: BaseException) -> BaseException:
    """The error behind one that only says that a file is not in the cache either."""
    from huggingface_hub import errors  # noqa: PLC0415  (an extra)

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _described(error: BaseException, repository: Repository, endpoint: str) -> tuple[str, str, str]:
    """Returns (expected, found, remedy) of a failed request."""
    from huggingface_hub import errors  # noqa: PLC0415  (an extra)

    page = page_of(repository, endpoint)
    match error:
        case errors.OfflineModeIsEnabled():
            return (
                f"the hub at {endpoint}, or what is needed of it in the cache",
                "HF_HUB_OFFLINE, which forbids the network, and not all in the cache",
                "Unset HF_HUB_OFFLINE, or copy the cache of a machine that has them.",
            )
        case errors.RevisionNotFoundError():
            return (
                "a branch, tag or commit of the repository",
                f"none of the name {repository.revision}",
                f"Its branches and tags are listed at {page}/tree/main; without @revision the "
                "default branch is used.",
            )
        case errors.GatedRepoError():
            return (
                "permission to read it",
                "the repository is gated, and access was not granted",
                f"Ask for access at {page}, then {_LOG_IN}.",
            )
        case errors.RepositoryNotFoundError():
            return _missing(repository, error.response.status_code)
        case errors.RemoteEntryNotFoundError():
            return (
                "it in the repository",
                "no such file or folder at this revision",
                f"Compare with the files listed at {page}/tree/{repository.revision or 'main'}.",
            )
        case errors.HfHubHTTPError():
            return _refused(error, endpoint)
        case UnicodeEncodeError():
            return (
                "a token in ASCII",
                "one with other characters",
                "Copy the token from the hub again, into HF_TOKEN or `hf auth login`.",
            )
        case json.JSONDecodeError():
            return (
                f"an answer of the hub at {endpoint}",
                "a page of another site, such as one to log in to a network",
                "Check the network and, where it is set, HF_ENDPOINT.",
            )
    return (
        f"an answer of the hub at {endpoint}",
        f"no connection ({' '.join(str(error).split()) or type(error).__name__})",
        "Check the network and, where it is set, HF_ENDPOINT; then run the same again.",
    )


def _missing(repository: Repository, status: int) -> tuple[str, str, str]:
    other = "hf://owner/name is a model" if repository.is_dataset else "hf://datasets/... a dataset"
    kind = repository.kind
    if status == 401:  # the answer to all who are not logged in
        return (
            f"a {kind} that may be read without logging in",
            "none: it does not exist, or is private",
            f"Check the name ({other}); for a private one, {_LOG_IN}.",
        )
    return (
        f"a {kind} repository on the hub",
        "none of this name that your token may read",
        f"Check the name ({other}); if it is private, {_LOG_IN} of an account that may read it.",
    )


def _refused(error: Any, endpoint: str) -> tuple[str, str, str]:
    """Returns (expected, found, remedy) of any other answer of the hub."""
    status = error.response.status_code
    reason = f"{status} {error.response.reason_phrase}".strip()
    if error.server_message:
        reason += f": {' '.join(error.server_message.split()).rstrip('.')}"
    if status == 401:
        return (
            "a token that the hub accepts",
            reason,
            f"L{_LOG_IN[1:]}; an old token may have expired.",
        )
    if status == 403:
        return (
            "permission",
            reason,
            f"Use a token with that right: {_LOG_IN}. To push, it needs the right to write.",
        )
    if status == 412:
        return (
            "the repository as it was when it was looked at",
            "a later commit",
            "Run the same again, which looks at it again.",
        )
    if status in _PASSING:
        return (
            f"an answer of the hub at {endpoint}",
            f"{reason}, several times",
            "Wait, then run the same again: complete files are kept.",
        )
    return f"an answer of the hub at {endpoint}", reason, "Check the address and HF_ENDPOINT."
