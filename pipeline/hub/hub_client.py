"""Lists, downloads and uploads files of repositories, by huggingface_hub's client."""

import contextlib
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pipeline.errors import DataError
from pipeline.files import sync, writing
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_errors import (
    check_token,
    hub_endpoint,
    import_huggingface_hub,
    page_of,
    reported,
    retrying,
)

PART = ".part"
"""Ending of a file whose download has not been completed."""
_WAITS_S = (1.0, 2.0, 4.0)
_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a commit."""

    path: str
    """Path in the repository."""
    num_bytes: int
    """Size."""
    git_id: str
    """Git's object id, SHA-1 with a header; of a large file that of its pointer."""
    sha256: str | None = None
    """SHA-256 of a large file, which the hub stores outside of git."""


@dataclasses.dataclass(frozen=True)
class Hub:
    """The hub at one address."""

    endpoint: str
    """Its URL."""
    waits_s: tuple[float, ...] = _WAITS_S
    """Seconds between the tries of a request that a busy hub refuses."""

    def resolve(self, repository: Repository) -> Repository:
        """Returns a repository at the commit that its revision names now.

        Raises:
          DataError: There is no such repository or revision, or the hub refuses or is not reached.
        """
        if repository.is_pinned:
            return repository
        api = self._api(repository)
        with reported(repository, self.endpoint, ""):
            info = retrying(
                lambda: api.repo_info(timeout=_TIMEOUT_S, **repository.at), self.waits_s
            )
        return repository.at_revision(info.sha)

    def list_files(self, repository: Repository, folder: str | None = None) -> list[RemoteFile]:
        """Lists the files of a repository, in all folders or below one.

        Raises:
          DataError: There is no such folder, or the hub refuses or is not reached.
        """
        place = f"/{quote(folder, safe='')}" if folder else ""
        url = (
            f"{self.endpoint}/api/{repository.kind}s/{repository.id}/tree/"
            f"{repository.revision or 'main'}{place}?recursive=true"
        )
        entries = []
        with reported(repository, self.endpoint, f"{folder}/" if folder else ""):
            while url:
                # Not by HfApi.list_repo_tree, which tries a hub that is not there for 23 s.
                answer = retrying(lambda url=url: self._get(repository, url), self.waits_s)
                entries += answer.json()
                url = answer.links.get("next", {}).get("url")
        return [
            RemoteFile(e["path"], e["size"], e["oid"], (e.get("lfs") or {}).get("oid"))
            for e in entries
            if e["type"] == "file"
        ]

    def read(self, repository: Repository, path: str) -> bytes:
        """Returns the content of a small file.

        Raises:
          DataError: There is no such file, or the hub refuses or is not reached.
        """
        url = self._url(repository, path)
        with reported(repository, self.endpoint, path):
            return retrying(lambda: self._get(repository, url).content, self.waits_s)

    def download(
        self,
        repository: Repository,
        file: RemoteFile,
        target: pathlib.Path,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Downloads a file beside `target`, resuming what was begun, and moves it there if whole.

        Args:
          repository: The repository, at a commit.
          file: The file.
          target: Path to write; its folder is made.
          advance: Called with the number of bytes that are new on this disk.

        Raises:
          DataError: The content is not what the hub declares, or the hub refuses or is not reached.
          UserError: The disk refuses.
        """
        part = _part(target)
        with writing(target), reported(repository, self.endpoint, file.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            retrying(
                lambda: self._append(repository, file, target, advance),
                self.waits_s,
                progress=lambda: begun_bytes(target),
            )
            _check(part, file, repository)
            sync(part)
            part.replace(target)
            sync(target.parent)

    def exists(self, repository: Repository, *, is_private: bool) -> bool:
        """Returns whether a repository to write to exists.

        Raises:
          DataError: There is no token, the repository is public and should be private, or the hub
            refuses or is not reached.
        """
        api = self._api(repository)
        check_token(repository)
        with reported(repository, self.endpoint, ""):
            if not retrying(
                lambda: api.repo_exists(repository.id, repo_type=repository.kind), self.waits_s
            ):
                return False
            if is_private:
                self._check_is_private(repository)
            return True

    def create(self, repository: Repository, *, is_private: bool) -> bool:
        """Creates a repository unless it exists; returns whether it did not.

        Raises:
          DataError: As for `exists`.
        """
        if self.exists(repository, is_private=is_private):
            return False
        api = self._api(repository)
        with reported(repository, self.endpoint, ""):
            retrying(
                lambda: api.create_repo(
                    repository.id, repo_type=repository.kind, private=is_private, exist_ok=True
                ),
                self.waits_s,
            )
        return True

    def commit(
        self,
        repository: Repository,
        added: Mapping[str, pathlib.Path | bytes],
        deleted: Collection[str],
        message: str,
        parent: str | None = None,
    ) -> Repository:
        """Uploads files in one commit, so that a reader sees all of them or none.

        Files that the hub has already, also those of an upload that was ended, are not sent again.

        Args:
          repository: The repository; its revision is the branch, None: the default branch.
          added: Content of files, or where it lies, by path in the repository.
          deleted: Files to delete in the same commit.
          message: The commit's message.
          parent: The commit that the change is made for; the hub refuses if there is a later one.

        Returns:
          The repository at the new commit.

        Raises:
          DataError: The hub refuses or is not reached.
        """
        hub, api = import_huggingface_hub(repository), self._api(repository)
        operations = [
            hub.CommitOperationAdd(
                path_in_repo=path, path_or_fileobj=str(c) if isinstance(c, pathlib.Path) else c
            )
            for path, c in added.items()
        ]
        operations += [hub.CommitOperationDelete(path_in_repo=path) for path in deleted]
        with reported(repository, self.endpoint, "upload"), _bars_in_a_terminal(hub):
            try:
                # It tries each upload several times itself.
                done = api.create_commit(
                    operations=operations,
                    commit_message=message,
                    parent_commit=parent,
                    **repository.at,
                )
            except RuntimeError as error:
                # What the threads of an upload raise; the cause is the hub's answer.
                raise error.__cause__ or error from error
        return repository.at_revision(done.oid)

    def _check_is_private(self, repository: Repository) -> None:
        api, page = self._api(repository), page_of(repository, self.endpoint)
        info = retrying(
            lambda: api.repo_info(repository.id, repo_type=repository.kind), self.waits_s
        )
        if not info.private:
            raise DataError(
                where=str(repository),
                expected="a private repository, or none yet",
                found="a public one",
                remedy=f"Make it private at {page}/settings, or leave out --private.",
            )

    def _api(self, repository: Repository) -> Any:
        return import_huggingface_hub(repository).HfApi(endpoint=self.endpoint)

    def _get(self, repository: Repository, url: str) -> Any:
        session = import_huggingface_hub(repository).get_session()
        response = session.get(url, headers=_headers(), timeout=_TIMEOUT_S)
        _raise_for_status(response)
        return response

    def _url(self, repository: Repository, path: str) -> str:
        hub = import_huggingface_hub(repository)
        return hub.hf_hub_url(filename=path, endpoint=self.endpoint, **repository.at)

    def _append(
        self,
        repository: Repository,
        file: RemoteFile,
        target: pathlib.Path,
        advance: Callable[[int], None],
    ) -> None:
        """Requests the bytes of a file that are not on this disk, and appends them as they come."""
        start = begun_bytes(target)
        if start >= file.num_bytes > 0:
            return
        headers = {**_headers(), **({"Range": f"bytes={start}-"} if start else {})}
        url = self._url(repository, file.path)
        session = import_huggingface_hub(repository).get_session()
        with session.stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as answer:
            _raise_for_status(answer)
            if start and answer.status_code != 206:  # a server without ranges sends all of it
                advance(-start)
            # Chunks as they come, unbuffered: what was received stays, however this process ends.
            mode = "ab" if answer.status_code == 206 else "wb"
            with _part(target).open(mode, buffering=0) as out:
                for chunk in answer.iter_bytes():
                    out.write(chunk)
                    advance(len(chunk))


def open_hub() -> Hub:
    """Returns the hub at `HF_ENDPOINT`, or the public one."""
    return Hub(hub_endpoint())


@contextlib.contextmanager
def _bars_in_a_terminal(hub: Any) -> Iterator[None]:
    """Keeps huggingface_hub's bars out of logs, where each of their steps would be a line."""
    is_left = sys.stderr.isatty() or hub.utils.are_progress_bars_disabled()
    if is_left:
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()


def begun_bytes(target: pathlib.Path) -> int:
    """How many bytes of a file an earlier download left beside its target."""
    part = _part(target)
    return part.stat().st_size if part.exists() else 0


def _part(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(target.name + PART)


def _check(part: pathlib.Path, file: RemoteFile, repository: Repository) -> None:
    """Compares a downloaded file with what the hub declares; a wrong one is removed."""
    found = f"{part.stat().st_size} bytes"
    expected = f"{file.num_bytes} bytes"
    if found == expected:
        expected, found = _identities(part, file)
    if found != expected:
        part.unlink()
        raise DataError(
            where=f"{repository}, {file.path}",
            expected=f"{expected}, as the hub declares",
            found=found,
            remedy="The download was corrupted and was deleted: run the same again. If that "
            "repeats, the copy on the hub, or a proxy before it, is corrupt.",
        )


def _identities(part: pathlib.Path, file: RemoteFile) -> tuple[str, str]:
    """Returns the declared checksum of a file, and that of its download."""
    if file.sha256 is not None:
        with part.open("rb") as opened:
            return (
                f"SHA-256 {file.sha256}",
                f"SHA-256 {hashlib.file_digest(opened, 'sha256').hexdigest()}",
            )
    content = part.read_bytes()
    found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return f"git id {file.git_id}", f"git id {found.hexdigest()}"


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415  (an extra)

    # Compressed answers have no ranges of the file.
    return {**build_hf_headers(), "Accept-Encoding": "identity"}


def _raise_for_status(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status  # noqa: PLC0415  (an extra)

    hf_raise_for_status(response)
