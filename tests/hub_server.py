"""The hub on this machine: an HTTP server that huggingface_hub's own client reads and writes.

It answers as the public hub does, for what that client asks: information and trees of repositories,
files with ranges and ETags, large files behind a redirect to another host, uploads and commits,
tokens, private and gated repositories. Xet is not offered. Each request is kept in a log.

`python -m tests.hub_server DIR` runs it by hand, with the repositories DIR/datasets/OWNER/NAME and
DIR/models/OWNER/NAME. What is pushed is kept in memory.
"""

import argparse
import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import socket
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

READER, WRITER = "hf_reader", "hf_writer"
"""Tokens that the server accepts."""
_LARGE = (".arrayrecord", ".safetensors", ".npz", ".mp4")
"""Endings of files that are stored outside of git."""
_PAGE = 1000
_REPO = r"(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"


def sha256_of(content: bytes) -> str:
    """The name of a large file."""
    return hashlib.sha256(content).hexdigest()


def git_id_of(content: bytes) -> str:
    """Git's object id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclasses.dataclass
class HubRepository:
    """A repository, with the files of each commit."""

    is_private: bool = False
    """Whether reading it needs a token."""
    is_gated: bool = False
    """Whether reading it was not granted to anyone."""
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    """Files by commit, the oldest first."""
    refs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Commits by branch or tag."""
    messages: list[str] = dataclasses.field(default_factory=list)
    """Messages of the commits."""

    def commit(
        self, files: Mapping[str, bytes], branch: str = "main", message: str = "change"
    ) -> str:
        """Makes a commit with exactly these files; returns its id."""
        listed = sorted((path, git_id_of(content)) for path, content in files.items())
        name = hashlib.sha1(json.dumps([len(self.commits), listed]).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs[branch] = name
        self.messages.append(message)
        return name

    def commit_folder(self, folder: pathlib.Path, branch: str = "main") -> str:
        """Makes a commit with the files of a folder; returns its id."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.commit(files, branch)

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the branch `main`."""
        return self.commits[self.refs["main"]]

    def resolve(self, revision: str) -> str | None:
        """The commit that a revision names; None if there is none."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclasses.dataclass
class Request:
    """A request that the server answers."""

    method: str
    path: str
    """Path without the query, unquoted."""
    status: int = 0
    num_bytes: int = 0
    """Bytes of the body that were sent so far."""
    start: int = 0
    """First byte that was asked for."""


@dataclasses.dataclass
class _Fault:
    pattern: re.Pattern[str]
    times: int
    status: int = 0
    cut_after: int | None = None
    held: threading.Event | None = None


class HubServer(http.server.ThreadingHTTPServer):
    """The hub on a port of this machine, in threads of this process."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repositories: dict[tuple[str, str], HubRepository] = {}
        self.uploads: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.log: list[Request] = []
        self.faults: list[_Fault] = []
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """The URL under which large files lie: a host of its own, to which no token may be sent."""
        return f"http://localhost:{self.server_port}"

    def dataset(self, name: str = "owner/name", **settings: bool) -> HubRepository:
        """Makes an empty repository of a dataset."""
        return self._make("datasets", name, **settings)

    def model(self, name: str = "owner/name", **settings: bool) -> HubRepository:
        """Makes an empty repository of a model."""
        return self._make("models", name, **settings)

    def _make(self, kind: str, name: str, **settings: bool) -> HubRepository:
        made = self.repositories[kind, name] = HubRepository(**settings)
        made.commit({".gitattributes": b"*.arrayrecord filter=lfs diff=lfs merge=lfs -text\n"})
        return made

    def fail(self, pattern: str, status: int = 503, times: int = 10**6) -> None:
        """Answers the next requests whose `METHOD path` contains a pattern with a status."""
        self.faults.append(_Fault(re.compile(pattern), times, status))

    def cut(self, pattern: str, after: int, times: int = 1) -> None:
        """Closes the connection after some bytes of the bodies of the next such requests."""
        self.faults.append(_Fault(re.compile(pattern), times, cut_after=after))

    def hold(self, pattern: str, after: int) -> threading.Event:
        """Sends some bytes of the next such body, and the rest when the returned event is set."""
        fault = _Fault(re.compile(pattern), 1, cut_after=after, held=threading.Event())
        self.faults.append(fault)
        assert fault.held is not None
        return fault.held

    def requests(self, pattern: str) -> list[Request]:
        """The requests so far whose `METHOD path` contains a pattern."""
        with self.lock:
            return [r for r in self.log if re.search(pattern, f"{r.method} {r.path}")]

    def downloaded(self) -> int:
        """Bytes of large files that were sent."""
        return sum(request.num_bytes for request in self.requests("GET /lfs/"))

    def fetched(self) -> list[str]:
        """Paths in their repositories of the files that were sent, in order."""
        found = []
        for request in self.requests(r"GET (/lfs/|.*/resolve/)"):
            stored = self.names.get(request.path.removeprefix("/lfs/"))
            if stored or request.status in (200, 206):
                found.append(stored or request.path.partition("/resolve/")[2].partition("/")[2])
        return found

    def take_fault(self, line: str) -> _Fault | None:
        """The fault that a request runs into, once."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.pattern.search(line):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing where a client was killed; other errors are printed as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[HubServer]:
    """A server without repositories, which is closed at the end; on any free port by default."""
    server = HubServer(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        for fault in server.faults:
            if fault.held is not None:
                fault.held.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test prints no log."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.place = urllib.parse.unquote(url.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        self.entry = Request(self.command, self.place)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.fault = self.server.take_fault(f"{self.command} {self.place}")
        try:
            if self.fault is not None and self.fault.status:
                raise _RefusedError(self.fault.status)
            with self.server.lock:
                answer = self._route()
            self._send(*answer)
        except _RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(refused.status, {k: v for k, v in headers.items() if v}, b"")

    def _route(self) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, self.place)
            if match and self.command in method:
                return answer(self, **match.groupdict())
        if self.place == "/":
            return 200, {}, b"the hub"
        raise _RefusedError(404)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.entry.status = status
        # Before the answer, so that who has it finds it in the log.
        with self.server.lock:
            self.server.log.append(self.entry)
        self.send_response(status)
        length = headers.get("Content-Length", str(len(body)))
        for name, value in {**headers, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut_after if self.fault is not None else None
        self._write(body[:cut])
        if self.fault is not None and cut is not None:
            if self.fault.held is None:
                self.close_connection = True
                return
            self.fault.held.wait()
            self._write(body[cut:])

    def _write(self, body: bytes) -> None:
        for first in range(0, len(body), 2**14):
            part = body[first : first + 2**14]
            self.entry.num_bytes += len(part)
            self.wfile.write(part)
        self.wfile.flush()

    # Who may do what.

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _check_token(self) -> None:
        if self._token not in ("", READER, WRITER):
            raise _RefusedError(401, message="Invalid credentials in Authorization header")

    def _readable(self, kind: str, name: str) -> HubRepository:
        self._check_token()
        found = self.server.repositories.get((kind, name))
        if found is None or (found.is_private and not self._token):
            # Who is not logged in does not learn which private repositories exist.
            raise _RefusedError(404 if self._token else 401, "RepoNotFound", "Repository not found")
        return found

    def _opened(self, kind: str, name: str, revision: str) -> tuple[HubRepository, str]:
        found = self._readable(kind, name)
        if found.is_gated:
            raise _RefusedError(403 if self._token else 401, "GatedRepo", "Access is restricted")
        commit = found.resolve(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, commit

    def _check_write(self) -> None:
        self._check_token()
        if self._token == READER:
            raise _RefusedError(403, message="You don't have the rights to write here")
        if not self._token:
            raise _RefusedError(401, message="Invalid username or password.")

    # Reading.

    def whoami(self) -> tuple[int, dict[str, str], bytes]:
        self._check_write()
        token = {"displayName": "of the tests", "role": "write"}
        return _json({"type": "user", "name": "me", "auth": {"accessToken": token}})

    def info(self, kind: str, id: str, revision: str | None) -> tuple[int, dict[str, str], bytes]:
        found = self._readable(kind, id)
        commit = found.resolve(revision or "main")
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in sorted(found.commits[commit])]
        return _json(
            {"id": id, "sha": commit, "private": found.is_private, "siblings": siblings, "tags": []}
        )

    def tree(
        self, kind: str, id: str, revision: str, folder: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        found, commit = self._opened(kind, id, revision)
        files = found.commits[commit]
        start = f"{folder}/" if folder else ""
        below = {path: content for path, content in files.items() if path.startswith(start)}
        if not below:
            raise _RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(below.items()):
            inner = path.removeprefix(start).split("/")
            if len(inner) == 1 or self.query.get("recursive", "").lower() in ("true", "1"):
                entries[path] = _entry(path, content)
            else:
                top = start + inner[0]
                entries[top] = {"type": "directory", "path": top, "oid": "0" * 40, "size": 0}
        first = int(self.query.get("cursor", "0"))
        page = list(entries.values())[first : first + _PAGE]
        status, headers, body = _json(page)
        if len(entries) > first + _PAGE:
            query = urllib.parse.urlencode({**self.query, "cursor": first + _PAGE})
            headers["Link"] = f'<{self.server.endpoint}{self.place}?{query}>; rel="next"'
        return status, headers, body

    def resolve(
        self, id: str, revision: str, file: str, dataset: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        kind = "datasets" if dataset else "models"
        found, commit = self._opened(kind, id, revision)
        content = found.commits[commit].get(file)
        if content is None:
            raise _RefusedError(404, "EntryNotFound", f"{file} does not exist")
        headers = {"X-Repo-Commit": commit}
        if file.endswith(_LARGE):
            name = sha256_of(content)
            self.server.uploads[name], self.server.names[name] = content, file
            headers |= {
                "Location": f"{self.server.store}/lfs/{name}",
                "X-Linked-Etag": f'"{name}"',
                "X-Linked-Size": str(len(content)),
            }
            return 302, headers, b""
        return self._ranged(content, {**headers, "ETag": f'"{git_id_of(content)}"'})

    def stored(self, name: str) -> tuple[int, dict[str, str], bytes]:
        if self._token:
            raise _RefusedError(400, message="a token was sent to the store")
        return self._ranged(self.server.uploads[name], {"ETag": f'"{name}"'})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        headers = {**headers, "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return 200, headers, content
        start, end = int(match[1]), int(match[2] or len(content) - 1) + 1
        self.entry.start = start
        if start >= len(content):
            return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return 206, headers, content[start:end]

    # Writing.

    def create(self) -> tuple[int, dict[str, str], bytes]:
        self._check_write()
        asked = json.loads(self.body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if (kind, name) in self.server.repositories:
            raise _RefusedError(409, message="You already created this repo")
        is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server._make(kind, name, is_private=is_private)
        return _json({"url": f"{self.server.endpoint}/{kind}/{name}"})

    def validate_yaml(self) -> tuple[int, dict[str, str], bytes]:
        content = json.loads(self.body)["content"]
        wrong = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return _json({"errors": wrong, "warnings": []})

    def preupload(self, kind: str, id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        self._check_write()
        found, commit = self._opened(kind, id, revision)
        there = {path: _entry(path, c) for path, c in found.commits[commit].items()}
        known = {path: e.get("lfs", e)["oid"] for path, e in there.items()}
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
                "oid": known.get(file["path"]),
            }
            for file in json.loads(self.body)["files"]
        ]
        return _json({"files": files})

    def batch(self, id: str, dataset: str | None) -> tuple[int, dict[str, str], bytes]:
        self._check_write()
        self._readable("datasets" if dataset else "models", id)
        objects = []
        for file in json.loads(self.body)["objects"]:
            href = f"{self.server.endpoint}/lfs/{file['oid']}"
            is_new = file["oid"] not in self.server.uploads
            actions = {"actions": {"upload": {"href": href}}} if is_new else {}
            objects.append({"oid": file["oid"], "size": file["size"], **actions})
        return _json({"transfer": "basic", "objects": objects})

    def upload(self, name: str) -> tuple[int, dict[str, str], bytes]:
        if sha256_of(self.body) != name:
            raise _RefusedError(400, message="the content has another checksum")
        self.server.uploads[name] = self.body
        return 200, {"ETag": f'"{name}"'}, b""

    def commit(self, kind: str, id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        self._check_write()
        found, parent = self._opened(kind, id, revision)
        files, header = dict(found.commits[parent]), {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        if header.get("parentCommit", parent) != parent:
            raise _RefusedError(
                412, message="A commit has happened since. Please refresh and try again"
            )
        name = found.commit(files, revision, header["summary"])
        url = f"{self.server.endpoint}/{kind}/{id}/commit/{name}"
        return _json({"commitUrl": url, "commitOid": name})


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_id_of(content)}
    if path.endswith(_LARGE):
        pointer = (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{sha256_of(content)}\nsize {len(content)}\n"
        ).encode()
        entry["oid"] = git_id_of(pointer)
        entry["lfs"] = {
            "oid": sha256_of(content),
            "size": len(content),
            "pointerSize": len(pointer),
        }
    return entry


_NAME = r"(?P<dataset>datasets/)?(?P<id>[^/]+/[^/]+?)"
_ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("GET",), rf"/api/{_REPO}(/revision/(?P<revision>.+))?", _Handler.info),
    (("GET",), rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), rf"/api/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"/api/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/lfs/(?P<name>[0-9a-f]{64})", _Handler.upload),
    (("GET", "HEAD"), "/lfs/(?P<name>[0-9a-f]{64})", _Handler.stored),
    (
        ("GET", "HEAD"),
        rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
        _Handler.resolve,
    ),
]


def main() -> None:
    """Serves the repositories in a folder until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server", description=__doc__)
    parser.add_argument("dir", type=pathlib.Path, help="the folder")
    parser.add_argument("--port", type=int, default=0, help="by default, a free one")
    args = parser.parse_args()
    if not args.dir.is_dir():
        parser.error(f"no folder {args.dir}")
    with contextlib.closing(socket.socket()) as probe:
        if args.port and probe.connect_ex(("127.0.0.1", args.port)) == 0:
            parser.error(f"port {args.port} is in use")
    with serving(args.port) as server, contextlib.suppress(KeyboardInterrupt):
        for folder in sorted(args.dir.glob("[dm]*/*/*")):
            owner, name = folder.parts[-2:]
            made = server._make(folder.parts[-3], f"{owner}/{name}")
            sys.stdout.write(f"# {folder}: commit {made.commit_folder(folder)}\n")
        sys.stdout.write(
            f"export HF_ENDPOINT={server.endpoint} HF_TOKEN={WRITER} HF_HUB_DISABLE_XET=1\n"
        )
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
