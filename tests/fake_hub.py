"""A hub in this process: the few endpoints that `huggingface_hub`'s own client asks, over HTTP, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        before = f"{len(self.commits)}{branch}{sorted((n, hashlib.sha1(d).hexdigest()) for n, d in files.items())}"
        sha = hashlib.sha1(before.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.at(revision)]


@dataclass
class Hub:
    """``repositories`` are what it holds, ``asked`` what it was asked, as ``METHOD path``; ``status`` makes every answer that error
    (``code`` names it), ``sizes`` are what it tells of files instead of what they have, ``headers`` those of a file's answer
    instead of its own, ``raw`` what writes an answer from its first byte on, by the last part of the path that is asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 0
    code: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    raw: dict[str, Callable[[Callable[[bytes], Any]], None]] = field(default_factory=dict)
    url: str = ""

    def put(self, name: str, files: Files, private: bool = False) -> Repository:
        self.repositories[name] = r = Repository(private)
        r.commit(files)
        return r

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.status:
            return (
                self.status,
                {"X-Error-Message": "not today", **({"X-Error-Code": self.code} if self.code else {})},
                b"",
            )
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return 409, {}, json.dumps({"error": "exists"}).encode()
            self.put(name, {".gitattributes": b""}, asked.get("private") or asked.get("visibility") == "private")
            return _json({"url": f"{self.url}/{name}", "name": name})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|branch)/([^/]+))?/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = found or file
        repository = self.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision = unquote(match[2] if file else match[3] or "main")
        if found and found[2] == "branch":
            status = 409 if revision in repository.branches else 200
            repository.branches.setdefault(revision, repository.branches["main"])
            return status, {}, b"{}"
        sha = repository.at(revision)
        if sha is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = repository.commits[sha]
        if file:
            data = files.get(unquote(file[3]))
            if data is None:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, b""
            return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha, **self.headers}, data
        if found[2] == "preupload":
            return _json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                }
            )
        if found[2] == "commit":
            new = dict(files)
            for step in map(json.loads, body.splitlines()):
                if step["key"] == "file":
                    new[step["value"]["path"]] = base64.b64decode(step["value"]["content"])
                elif step["key"] == "deletedFile":
                    del new[step["value"]["path"]]
            sha = repository.commit(new, revision)
            return _json({"commitUrl": f"{self.url}/{match[1]}/commit/{sha}", "commitOid": sha})
        listed = [{"type": "file", "path": n, "rfilename": n, "size": self.sizes.get(n, len(d)), "oid": hashlib.sha1(d).hexdigest()}
                  for n, d in files.items()]  # fmt: skip
        if found[2] == "tree":
            return _json(listed)
        return _json({"id": match[1], "sha": sha, "private": repository.private, "siblings": listed})


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def point_to(monkeypatch: Any, url: str) -> None:
    """What HF_ENDPOINT sets when the hub's library is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that listens until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            answer = hub.raw.get(path.rpartition("/")[2])
            if answer is not None:
                self.close_connection = True
                with suppress(OSError):  # the client has gone
                    answer(self.wfile.write)
                return
            status, headers, data = hub.answer(self.command, path, body)
            self.send_response(status)
            for k, v in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _answer

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer((socket.inet_ntoa(b"\x7f\0\0\1"), 0), Handler)
    hub.url = f"http://{server.server_address[0]}:{server.server_port}"
    # The interval is how long ending it takes.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
