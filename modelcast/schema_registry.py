"""A Schema Registry that speaks Confluent's HTTP API, through confluent-kafka's own client (its only importer).

- Schemas are asked for by id or GUID and kept for ever: what either names never changes.
- *It has no such schema* and *it can't be asked* are told apart. The first is an answer (404 with one of the API's own
  error codes) and becomes None; it is asked again now and then, as another node of the registry may be ahead. Anything
  else is `SchemaRegistryError`: the caller waits. While it lasts the registry is tried at growing intervals only, and
  what is asked for in between fails at once.
- A schema that has been denied once stays unknown while the registry is away: waiting for it would hold up a stream.
- Settings are the client's own (`url`, `basic.auth.user.info`, `ssl.ca.location`, `bearer.auth.*`, …), written as
  properties with the prefix `schema.registry.`.

Example:
    with SchemaRegistry({"url": "http://localhost:8081"}) as registry:
        registry.find(b"\\x00\\x00\\x00\\x00\\x07")
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from modelcast.avro import Schema, inlined
from modelcast.config import SCHEMA_REGISTRY_PREFIX
from modelcast.errors import ConfigError, MissingExtraError, SchemaRegistryError, SourceError
from modelcast.events.frames import MAX_SCHEMA_ID, guid_of, schema_id_of
from modelcast.events.writers import AvroWriter, JsonWriter, ProtobufWriter, UnusableWriter, WriterSchema
from modelcast.protobuf import ProtobufSchema

# One question. A registry answers in milliseconds; the scoring thread may be the one that waits.
TIMEOUT_S = 3.0
# Between two tries of a registry that is away: at first often, as most are restarts; doubled up to the second.
RETRY_S = 0.25
RETRY_MAX_S = 5.0
# At the start a registry may be starting, too, and somebody may be waiting at a prompt: as for brokers.
CHECK_S = 6.0
# A schema the registry does not have is asked for again after this; of many such, so many a second in all.
ABSENT_S = 1.0
ASKED_ANEW_PER_S = 16
# New schemas are asked for at a stretch for so long, then whoever asks has to come again: a batch of garbage names
# thousands, and nothing is polled meanwhile. Another stretch begins after a pause.
STRETCH_S = 1.0
_PAUSE_S = 0.05
# For how long after its first denial a schema is waited for if the registry goes away; the scorer's own patience.
DENIED_ANEW_S = 10.0
# Denials kept: those of two of the largest batches, or the ids of one could never all be known.
ABSENT_MAX = 40_000
# Files or types that refer to each other, deeper than anybody nests them: an answer must end.
_MAX_REFERENCES = 1000

# The API's words for "there is no such thing": subject, version, schema. A bare 404 comes from something else.
_NOT_FOUND = frozenset({40401, 40402, 40403})
_UNPROCESSABLE = 422
_CREDENTIALS_REFUSED = frozenset({401, 403})

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Denied:
    """A schema that is not there, or of no use: what was said last, and when first and last."""

    answer: UnusableWriter | None
    first_s: float
    last_s: float


class SchemaRegistry:
    """One registry, as a `SchemaSource` of its frames; thread-safe.

    Args:
        settings: The client's own, with `url`; numbers may be written as text.
        clock: Monotonic seconds.

    Raises:
        MissingExtraError: The client is not installed.
        ConfigError: A setting is wrong.
    """

    def __init__(self, settings: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stack = ExitStack()
        # A client keeps what it was told by id alone, whatever form was asked for: one for each form.
        self._texts = self._stack.enter_context(_client(settings))
        self._serialized = self._stack.enter_context(_client(settings))
        self._url = _shown_url(str(settings["url"]))
        self._clock = clock
        self._lock = threading.Lock()  # guards all below, and asks one thing at a time
        self._known: dict[bytes, WriterSchema] = {}
        self._denied: dict[bytes, _Denied] = {}
        self._failure: SchemaRegistryError | None = None
        self._status: int | None = None  # what it answered with then
        self._retry_at_s = 0.0
        self._stretch_began_s = self._asked_s = -math.inf
        self._retry_s = RETRY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the client's connections."""
        self._stack.close()

    def check(self) -> None:
        """Asks something, for `CHECK_S` at most, so that a wrong URL or credential is told before it is needed.

        Raises:
            SchemaRegistryError: It can't be asked; of refused credentials at once.
        """
        deadline_s = self._clock() + CHECK_S
        while True:
            with self._lock:
                try:
                    self._ask(self._texts.get_schema_types)
                except SchemaRegistryError:
                    if self._status in _CREDENTIALS_REFUSED or self._clock() + self._retry_s > deadline_s:
                        raise
                else:
                    return
            time.sleep(RETRY_S)

    def find(self, frame: bytes) -> WriterSchema | None:
        """The schema a registry's frame names; None if the registry has none.

        Raises:
            SchemaRegistryError: It can't be asked now.
        """
        known = self._known.get(frame)
        if known is not None:
            return known
        schema_id = schema_id_of(frame)
        if schema_id is not None and schema_id > MAX_SCHEMA_ID:
            return None
        with self._lock:
            denied, now = self._denied.get(frame), self._clock()
            anew_s = ABSENT_S * max(1.0, len(self._denied) / ASKED_ANEW_PER_S)
            if denied is not None and now - denied.last_s < anew_s:
                return denied.answer
            self._take_breath(now)
            try:
                found = self._look_up(frame)
            except SchemaRegistryError:
                if denied is None or now - denied.first_s < DENIED_ANEW_S:
                    raise
                return denied.answer
            self._asked_s = self._clock()
            self._note(frame, found, now)
            return found

    def _take_breath(self, now: float) -> None:
        if now - self._asked_s > _PAUSE_S:
            self._stretch_began_s = now
        elif now - self._stretch_began_s > STRETCH_S:
            raise SchemaRegistryError(f"the Schema Registry at {self._url} is being asked for many schemas")

    def _note(self, frame: bytes, found: WriterSchema | None, now: float) -> None:
        # What can't be used may be mended, by a reference that was missing: it is looked at again as one not there.
        if found is None or isinstance(found, UnusableWriter):
            denied = self._denied.setdefault(frame, _Denied(found, now, now))
            denied.answer, denied.last_s = found, now
            while len(self._denied) > ABSENT_MAX:
                del self._denied[next(iter(self._denied))]
        else:
            self._denied.pop(frame, None)
            self._known[frame] = found

    def _look_up(self, frame: bytes) -> WriterSchema | None:
        def get(client: Any, form: str | None) -> Any:
            schema_id = schema_id_of(frame)
            if schema_id is None:
                return client.get_schema_by_guid(guid_of(frame), fmt=form)
            return client.get_schema(schema_id, fmt=form)

        schema = self._ask(lambda: get(self._texts, None))
        if schema is None:
            return None
        try:
            match schema.schema_type:
                case "AVRO":
                    return AvroWriter(self._avro(schema))
                case "JSON":
                    return JsonWriter()
                case "PROTOBUF":
                    schema = self._ask(lambda: get(self._serialized, "serialized"))
                    return None if schema is None else ProtobufWriter(self._protobuf(schema))
                case other:
                    return UnusableWriter(f"the Schema Registry has a schema of type {other}, which can't be read here")
        except SourceError as error:
            return UnusableWriter(f"the schema in the Schema Registry can't be used: {error.message}")

    def _avro(self, schema: Any) -> Schema:
        parts: dict[str, str] = {}
        self._collect(schema, None, parts)
        return inlined(_text(schema), list(parts.values()))

    def _protobuf(self, schema: Any) -> ProtobufSchema:
        parts: dict[str, str] = {}
        self._collect(schema, "serialized", parts)
        return ProtobufSchema.parse(
            _descriptor(_text(schema)), {name: _descriptor(text) for name, text in parts.items()}
        )

    def _collect(self, schema: Any, form: str | None, parts: dict[str, str]) -> None:
        """What a schema refers to, by the name it is referred to: what others need stands before them."""
        client = self._texts if form is None else self._serialized

        def get(reference: Any) -> Any:
            return client.get_version(reference.subject, reference.version, True, form)

        for reference in schema.references or ():
            if reference.name in parts:
                continue
            if len(parts) >= _MAX_REFERENCES:
                raise SourceError(f"it has more than {_MAX_REFERENCES} references")
            found = self._ask(partial(get, reference))
            if found is None:
                raise SourceError(
                    f"it refers to version {reference.version} of {reference.subject!r}, which is not there"
                )
            parts[reference.name] = ""  # its place is taken: schemas that refer to each other end here
            self._collect(found.schema, form, parts)
            del parts[reference.name]
            parts[reference.name] = _text(found.schema)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer; None where there is no such thing. Raises SchemaRegistryError, SourceError."""
        if self._failure is not None and self._clock() < self._retry_at_s:
            raise self._failure
        try:
            answer = question()
        except Exception as error:  # what its HTTP library raises shares no base with the client's own errors
            status, code = getattr(error, "http_status_code", None), getattr(error, "error_code", None)
            if code in _NOT_FOUND:
                self._recovered()
                return None
            if status == _UNPROCESSABLE:
                self._recovered()
                raise SourceError(f"the registry says: {error}") from error
            raise self._failed(error, status) from error
        self._recovered()
        return answer

    def _recovered(self) -> None:
        self._failure, self._retry_s = None, RETRY_S

    def _failed(self, error: Exception, status: int | None) -> SchemaRegistryError:
        self._failure, self._status = _explained(self._url, error, status), status
        self._retry_at_s = self._clock() + self._retry_s * random.uniform(0.5, 1)  # noqa: S311 - spreads instances out
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        _logger.info("%s", self._failure)
        return self._failure


def _client(settings: Mapping[str, Any]) -> Any:
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise MissingExtraError(
            f"a Schema Registry is named, and its client is not installed: {error}",
            hint="Install it: pip install 'modelcast[schema-registry]'.",
        ) from error
    try:
        # Retries are made here, where the caller can go on polling in between.
        numbers = {key: _number(value) if isinstance(value, str) else value for key, value in settings.items()}
        return SchemaRegistryClient({"timeout": TIMEOUT_S, "max.retries": 0, **numbers})
    except Exception as error:  # ValueError and TypeError of settings, ssl.SSLError and OSError of files they name
        raise ConfigError(
            f"a setting of the Schema Registry is wrong: {error}",
            hint=f"Settings are written {SCHEMA_REGISTRY_PREFIX}NAME=VALUE, as confluent-kafka names them.",
        ) from error


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _explained(url: str, error: Exception, status: int | None) -> SchemaRegistryError:
    hint = "Check --schema-registry (MODELCAST_SCHEMA_REGISTRY), and that the registry runs."
    if status in _CREDENTIALS_REFUSED:
        what = f"refuses the credentials ({status})"
        hint = f"Check {SCHEMA_REGISTRY_PREFIX}basic.auth.user.info, or what else the registry asks for."
    elif status is not None:
        what = f"answers with {error}"
    else:
        what = f"can't be reached: {type(error).__name__}: {error}"
    return SchemaRegistryError(f"the Schema Registry at {url} {what}", hint=hint)


def _shown_url(url: str) -> str:
    """URLs without the passwords they may hold."""
    parts = [part.strip() for part in url.split(",")]
    return ", ".join(f"{part.split('://')[0]}://{part.rsplit('@', 1)[1]}" if "@" in part else part for part in parts)


def _text(schema: Any) -> str:
    if not schema.schema_str:
        raise SourceError("the registry gave no text for it")
    return str(schema.schema_str)


def _descriptor(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceError("the registry does not give Protobuf schemas in their serialized form") from error
