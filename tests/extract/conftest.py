"""A Hugging Face hub on loopback, as `huggingface_hub` speaks to one."""

import base64
import hashlib
import io
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Fedclip = Callable[..., subprocess.CompletedProcess[str]]

# Files from this size on are large ones: redirected to another place, under their SHA-256.
LARGE = 1024


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: its branches' commits, and each commit's files."""

    kind: str
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        content = json.dumps({path: git_blob(data) for path, data in sorted(files.items())})
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.branches[branch] = commit
        self.commits[commit] = dict(files)
        return commit


@dataclass
class Request:
    """A request that the hub got: its method and path, and the byte that it began at."""

    method: str
    path: str
    begin: int


class Hub:
    """What the hub has, what it was asked, and where it drops connections."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.drops: list[int] = []  # after so many bytes of the next large files
        self.damage = False
        self.token = ""  # what a request that writes must have
        self.uploads: dict[str, bytes] = {}  # large files, by their SHA-256
        self.stall_at: int | None = None  # bytes of a large file after which nothing comes
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def repo(self, name: str, files: Mapping[str, bytes], kind: str = "dataset") -> Repo:
        repo = self.repos[f"{kind}s/{name}"] = Repo(kind)
        repo.push(files)
        return repo

    def model(self, name: str, folder: Path) -> Repo:
        paths = (path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.repo(name, files, kind="model")

    def large_gets(self) -> list[Request]:
        return [each for each in self.requests if each.path.startswith("/cdn/")]

    def _handler(hub: "Hub") -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError):  # of a client that has what it wants
                    super().handle_one_request()

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def do_POST(self) -> None:
                path = unquote(urlsplit(self.path).path)
                content = self.rfile.read(int(self.headers["Content-Length"]))
                hub.requests.append(Request(self.command, path, 0))
                if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    self.error(401, "")
                elif path == "/api/validate-yaml":
                    self.json({"errors": [], "warnings": []})
                elif path == "/api/repos/create":
                    self.create(json.loads(content))
                elif found := re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
                    act = self.preupload if found[2] == "preupload" else self.commit
                    act(f"models/{found[1]}", content)
                elif path.endswith(".git/info/lfs/objects/batch"):
                    self.lfs(json.loads(content))
                else:
                    self.error(404, "RepoNotFound")

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                hub.uploads[hashlib.sha256(content).hexdigest()] = content
                self.json({})

            def create(self, wanted: Mapping[str, Any]) -> None:
                name = f"{wanted['organization']}/{wanted['name']}"
                known = f"models/{name}" in hub.repos
                if not known:
                    private = wanted.get("visibility") == "private"
                    hub.repo(name, {}, kind="model").private = private
                self.json({"url": f"{hub.url}/{name}"}, 409 if known else 200)

            def preupload(self, name: str, content: bytes) -> None:
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(content)["files"]
                ]
                self.json({"files": files})

            def lfs(self, wanted: Mapping[str, Any]) -> None:
                objects = [
                    {**each, "actions": {"upload": {"href": f"{hub.url}/upload/{each['oid']}"}}}
                    for each in wanted["objects"]
                ]
                self.json({"transfer": "basic", "objects": objects})

            def commit(self, name: str, content: bytes) -> None:
                repo = hub.repos[name]
                files = dict(repo.commits[repo.branches["main"]])
                for line in map(json.loads, content.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.uploads[value["oid"]]
                oid = repo.push(files)
                url = f"{hub.url}/{name.removeprefix('models/')}/commit/{oid}"
                self.json({"success": True, "commitOid": oid, "commitUrl": url})

            def answer(self, *, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                begin = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
                hub.requests.append(Request(self.command, path, int(begin[1]) if begin else 0))
                if path.startswith("/cdn/"):
                    self.large(path.removeprefix("/cdn/"))
                elif api := re.match(
                    r"/api/(datasets|models)/([^/]+/[^/]+)/(revision|tree)/(.+)", path
                ):
                    self.api(*api.groups())
                elif found := re.match(
                    r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path
                ):
                    kind = "datasets" if found[1] else "models"
                    self.resolve(f"{kind}/{found[2]}", found[3], found[4], body)
                else:
                    self.error(404, "RepoNotFound")

            def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
                repo = hub.repos.get(name)
                if repo is None:
                    self.error(401, "RepoNotFound")
                    return None
                if repo.gated:
                    self.error(403, "GatedRepo")
                    return None
                commit = repo.branches.get(revision, revision)
                if commit not in repo.commits:
                    self.error(404, "RevisionNotFound")
                    return None
                return commit, repo.commits[commit]

            def api(self, kind: str, repo: str, what: str, revision: str) -> None:
                found = self.files(f"{kind}/{repo}", revision)
                if found is None:
                    return
                commit, files = found
                if what == "revision":
                    siblings = [{"rfilename": path} for path in files]
                    self.json({"_id": "1", "id": repo, "sha": commit, "siblings": siblings})
                    return
                entries: list[dict[str, Any]] = []
                for path, content in files.items():
                    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
                    entry["oid"] = git_blob(content)
                    if len(content) >= LARGE:
                        oid = hashlib.sha256(content).hexdigest()
                        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
                    entries.append(entry)
                self.json(entries)

            def resolve(self, name: str, revision: str, path: str, body: bool) -> None:
                found = self.files(name, revision)
                if found is None:
                    return
                commit, files = found
                content = files.get(path)
                if content is None:
                    self.error(404, "EntryNotFound", commit)
                    return
                large = len(content) >= LARGE
                etag = hashlib.sha256(content).hexdigest() if large else git_blob(content)
                self.send_response(302 if large else 200)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{etag}"')
                if large:
                    self.send_header("X-Linked-Etag", f'"{etag}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                    # Another host, as the hub's large files are.
                    elsewhere = f"http://localhost:{hub.server.server_port}"
                    self.send_header("Location", f"{elsewhere}/cdn/{etag}")
                self.send_header("Content-Length", str(0 if large else len(content)))
                self.end_headers()
                if body and not large:
                    self.wfile.write(content)

            def large(self, oid: str) -> None:
                contents = (
                    content
                    for repo in hub.repos.values()
                    for files in repo.commits.values()
                    for content in files.values()
                )
                content = next(c for c in contents if hashlib.sha256(c).hexdigest() == oid)
                if hub.damage:
                    content = content[:-1] + bytes([content[-1] ^ 1])
                begin = hub.requests[-1].begin
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(content) - begin))
                if begin:
                    end = len(content)
                    self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{end}")
                self.end_headers()
                if hub.stall_at is not None:
                    self.wfile.write(content[begin : hub.stall_at])
                    self.wfile.flush()
                    hub.stalled.set()
                    hub.go_on.wait()
                    self.close_connection = True
                elif hub.drops:
                    self.wfile.write(content[begin : begin + hub.drops.pop(0)])
                    self.wfile.flush()
                    self.close_connection = True
                else:
                    self.wfile.write(content[begin:])

            def json(self, value: Any, status: int = 200) -> None:
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def error(self, status: int, code: str, commit: str | None = None) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                if commit:
                    self.send_header("X-Repo-Commit", commit)
                self.end_headers()

        return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Serve an empty hub on loopback."""
    hub = Hub()
    # The server looks as often whether it is to end.
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def image_table(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, Sequence[str]] | None = None,
    *,
    group: int = 5,
    metadata: bool = True,
) -> bytes:
    """Write rows as the `datasets` library does: images as bytes and path, labels as numbers.

    Args:
        rows: Each with `image`, the bytes of an image file, and other columns.
        names: What the numbers of a column stand for.
        group: Rows in a row group.
        metadata: Whether the file says what its numbers stand for.
    """
    columns: dict[str, Any] = {
        name: [row[name] for row in rows] for name in rows[0] if name != "image"
    }
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {
            "image": pa.array([{"bytes": row["image"], "path": None} for row in rows], image),
            **columns,
        }
    )
    if names and metadata:
        features = {
            column: {"names": list(values), "_type": "ClassLabel"}
            for column, values in names.items()
        }
        info = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group)
    return buffer.getvalue()


@pytest.fixture
def at_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let this very process speak to the hub, and give the empty folder that downloads go to."""
    from huggingface_hub import constants

    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path / "hf"


@pytest.fixture(name="image_table")
def give_image_table() -> Any:
    """Give the function that writes a Parquet file of images."""
    return image_table


@pytest.fixture
def machine_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Give the environment of a machine that has nothing but a connection to the hub."""
    (tmp_path / "home").mkdir()
    return {
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "home" / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }


@pytest.fixture
def machine(fedclip: Fedclip, machine_environment: dict[str, str]) -> Fedclip:
    """Give a function that runs fedclip on that machine."""

    def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        env = {**machine_environment, **options.pop("env", {})}
        return fedclip(*arguments, env=env, **options)

    return command


# Ends a process that so much as looks up a name.
NO_NETWORK = """
import os, sys

def refuse(event, arguments):
    address = arguments[1] if event == "socket.connect" else None
    if event == "socket.getaddrinfo" or isinstance(address, tuple):
        print("the network was used:", event, arguments, file=sys.stderr, flush=True)
        os._exit(77)

sys.addaudithook(refuse)
"""


@pytest.fixture
def without_network(tmp_path: Path) -> dict[str, str]:
    """Give an environment in which a process that uses the network ends at once."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(NO_NETWORK)
    return {"PYTHONPATH": str(tmp_path / "guard")}
