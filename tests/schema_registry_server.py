"""A Schema Registry over HTTP, for tests: the part of Confluent's API that clients and serializers use.

    with SchemaRegistryServer() as server:
        client = SchemaRegistryClient({"url": server.url})
        server.stop()         # connections are refused from now on
        server.start()        # at the same port, with the same schemas
        server.answer = 503   # every request is answered so

Schemas are kept in memory. One text has one id whatever its subjects, as in the real one. Error codes and bodies are
the API's (https://docs.confluent.io/platform/current/schema-registry/develop/api.html), also where that is odd: an id
no Java int holds finds no such *path*. Protobuf is handed out as descriptors only: a text is there for the asking, and
says nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, unquote, urlsplit

SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND = 40401, 40402, 40403
_MAX_INT = 2**31 - 1
_TEXT_OF_PROTOBUF = 'syntax = "proto3";'


@dataclass(frozen=True)
class _Registered:
    id: int
    guid: str
    body: dict[str, Any]  # schema, schemaType, references

    def shown(self, form: str | None) -> dict[str, Any]:
        shown = {**self.body, "id": self.id, "guid": self.guid}
        if self.body.get("schemaType") == "PROTOBUF" and form != "serialized":
            shown["schema"] = _TEXT_OF_PROTOBUF
        if shown.get("schemaType") == "AVRO":
            del shown["schemaType"]  # the API leaves out what is the default
        return shown


class _RefusedError(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class _Store:
    schemas: list[_Registered] = field(default_factory=list)
    subjects: dict[str, list[_Registered]] = field(default_factory=dict)

    def register(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        kept = {"schema": body["schema"], "schemaType": body.get("schemaType") or "AVRO"}
        if body.get("references"):
            kept["references"] = body["references"]
        identity = json.dumps(kept, sort_keys=True)
        found = next((one for one in self.schemas if json.dumps(one.body, sort_keys=True) == identity), None)
        if found is None:
            guid = str(uuid.UUID(bytes=hashlib.md5(identity.encode()).digest()))
            found = _Registered(len(self.schemas) + 1, guid, kept)
            self.schemas.append(found)
        versions = self.subjects.setdefault(subject, [])
        if found not in versions:
            versions.append(found)
        return {**found.shown("serialized"), "subject": subject, "version": versions.index(found) + 1}

    def lookup(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        for version, one in enumerate(self.versions(subject), start=1):
            same = one.body["schemaType"] == (body.get("schemaType") or "AVRO")
            if one.body["schema"] == body["schema"] and same:
                return {**one.shown("serialized"), "subject": subject, "version": version}
        raise _RefusedError(404, SCHEMA_NOT_FOUND, "Schema not found")

    def versions(self, subject: str) -> list[_Registered]:
        if subject not in self.subjects:
            raise _RefusedError(404, SUBJECT_NOT_FOUND, f"Subject '{subject}' not found.")
        return self.subjects[subject]

    def version(self, subject: str, number: str, form: str | None) -> dict[str, Any]:
        versions = self.versions(subject)
        version = len(versions) if number == "latest" else int(number)
        if not 0 < version <= len(versions):
            raise _RefusedError(404, VERSION_NOT_FOUND, f"Version {number} not found.")
        return {**versions[version - 1].shown(form), "subject": subject, "version": version}

    def by_id(self, number: str, form: str | None) -> dict[str, Any]:
        if int(number) > _MAX_INT:
            raise _RefusedError(404, 404, "HTTP 404 Not Found")
        if not 0 < int(number) <= len(self.schemas):
            raise _RefusedError(404, SCHEMA_NOT_FOUND, f"Schema {number} not found")
        return self.schemas[int(number) - 1].shown(form)

    def by_guid(self, guid: str, form: str | None) -> dict[str, Any]:
        found = next((one for one in self.schemas if one.guid == guid), None)
        if found is None:
            raise _RefusedError(404, SCHEMA_NOT_FOUND, f"Schema {guid} not found")
        return found.shown(form)


class SchemaRegistryServer:
    """The server; use as a context manager.

    Args:
        credentials: `user:password` every request has to bring, if any.

    Attributes:
        answer: The status every request is answered with, in the place of its answer; None for its answer.
        asked: Paths of all requests, in order.
    """

    def __init__(self, *, credentials: str | None = None) -> None:
        self.credentials = credentials
        self.answer: int | None = None
        self.asked: list[str] = []
        self.store = _Store()
        self.lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listens, at the port it had before."""
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def serves(self, path: str) -> bool:
        """Whether a path was asked for."""
        return any(path in asked for asked in self.asked)


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[SchemaRegistryServer]

    def do_GET(self) -> None:
        self._respond("GET", {})

    def do_POST(self) -> None:
        self._respond("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _respond(self, method: str, body: dict[str, Any]) -> None:
        registry = self.registry
        with registry.lock:
            registry.asked.append(self.path)
            try:
                if registry.answer is not None:
                    raise _RefusedError(registry.answer, registry.answer * 100, "as the test wants it")
                self._check_credentials()
                status, answer = 200, self._route(method, body)
            except _RefusedError as error:
                status, answer = error.status, {"error_code": error.code, "message": str(error)}
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _route(self, method: str, body: dict[str, Any]) -> Any:
        parts = urlsplit(self.path)
        form = parse_qs(parts.query).get("format", [None])[0]
        store = self.registry.store
        routes = {
            r"GET /schemas/types": lambda: ["JSON", "PROTOBUF", "AVRO"],
            r"GET /schemas/ids/(\d+)": lambda number: store.by_id(number, form),
            r"GET /schemas/guids/([0-9a-f-]+)": lambda guid: store.by_guid(guid, form),
            r"GET /subjects/([^/]+)/versions/(\d+|latest)": lambda *named: store.version(*named, form),
            r"POST /subjects/([^/]+)/versions": lambda subject: store.register(subject, body),
            r"POST /subjects/([^/]+)": lambda subject: store.lookup(subject, body),
            r"GET /associations/.*": list,
        }
        for pattern, answer in routes.items():
            match = re.fullmatch(pattern, f"{method} {parts.path}")
            if match:
                return answer(*map(unquote, match.groups()))
        raise _RefusedError(404, 404, "HTTP 404 Not Found")

    def _check_credentials(self) -> None:
        wanted = self.registry.credentials
        brought = self.headers.get("Authorization")
        if wanted is not None and brought != f"Basic {base64.b64encode(wanted.encode()).decode()}":
            raise _RefusedError(401, 401, "Unauthorized")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Says nothing: a test that fails shows what was asked."""
