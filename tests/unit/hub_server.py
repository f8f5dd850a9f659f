"""A stand-in of the Hugging Face Hub on 127.0.0.1: its routes that name and give files; remembers what was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40
OTHER_COMMIT = "7" * 40


@dataclass
class Repository:
    """Files at each commit, and what branches and tags stand for."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None
    gated: bool = False

    def lets_in(self, authorization: str | None) -> bool:
        return self.token is None or authorization == f"Bearer {self.token}"

    def commit(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """What the server has, and the paths it was asked for."""

    repositories: dict[str, Repository]
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    @property
    def files_given(self) -> list[str]:
        """Files of which the content was sent."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for path in self.asked
            if path.startswith("GET") and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        self.served.asked.append(f"{self.command} {unquote(urlsplit(self.path).path)}")

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        info = re.fullmatch(r"/api/models/(?P<repo>.+?)/revision/(?P<revision>.+)", path)
        match = info or re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path)
        repository = self.served.repositories.get(match["repo"]) if match else None
        if match is None or repository is None or not repository.lets_in(self.headers.get("Authorization")):
            self._fail(401, "RepoNotFound", "Repository not found")
        elif repository.gated:
            self._fail(403, "GatedRepo", "Access to model is restricted")
        elif (commit := repository.commit(match["revision"])) is None:
            self._fail(404, "RevisionNotFound", "Invalid rev id")
        elif info:
            siblings = [{"rfilename": name} for name in repository.commits[commit]]
            description = {"id": match["repo"], "sha": commit, "siblings": siblings}
            self._send(json.dumps(description).encode(), {"Content-Type": "application/json"})
        elif (data := repository.commits[commit].get(match["name"])) is None:
            self._fail(404, "EntryNotFound", "Entry not found")
        else:
            self._send(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit})

    def _fail(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def hub(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """A Hub with these repositories, for as long as the context lasts."""
    served = Hub(dict(repositories))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    server.daemon_threads = True
    served.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
