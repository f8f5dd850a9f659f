"""What the registry says: which records count (§4), what a manifest may declare (§7), who signed (§8). No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.protocol_client.avro import ProtocolError, Schema, unframe

SCHEMAS = Path(__file__).parent.parent.parent / "schemas"
MAX_CHUNK_BYTES = 1_000_000  # the most §6 allows
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KEY = re.compile(r"(version|release)/([A-Za-z0-9][A-Za-z0-9._-]{0,99})/([1-9][0-9]{0,18})")


def load(name: str) -> tuple[Schema, ...]:
    """Today's schema of that name, then every earlier one."""
    paths = (SCHEMAS / f"{name}.avsc", *sorted((SCHEMAS / "earlier").glob(f"{name}.*.avsc")))
    return tuple(Schema(path.read_bytes()) for path in paths)


ENVELOPE, REPOSITORY, MANIFEST, WITHDRAWN, RELEASE = map(
    load, ("envelope", "repository", "manifest", "withdrawn", "release")
)
TYPES = {
    f"application/vnd.modelcast.{name}+avro": schemas
    for name, schemas in (
        ("repository", REPOSITORY),
        ("manifest", MANIFEST),
        ("withdrawn", WITHDRAWN),
        ("release", RELEASE),
    )
}


def signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, version 1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(key: Ed25519PublicKey) -> str:
    public = key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    text = f'{{"keytype":"ed25519","keyval":{{"public":"{public}"}},"scheme":"ed25519"}}'
    return hashlib.sha256(text.encode()).hexdigest()


def signers(envelope: Mapping[str, Any], keys: Iterable[Ed25519PublicKey]) -> set[str]:
    """Ids of those of `keys` that signed the payload."""
    message, found = signed_bytes(envelope["payload_type"], envelope["payload"]), set()
    known = {key_id(key): key for key in keys}
    for signature in envelope["signatures"]:
        try:
            known[signature["key_id"]].verify(signature["signature"], message)
        except (KeyError, InvalidSignature):
            continue
        found.add(signature["key_id"])
    return found


def counts(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest declares no more than §7 allows; judged before anything is allocated for it."""
    files = manifest["files"]
    paths, sizes = [entry["path"] for entry in files], [entry["size"] for entry in files]
    return (
        1 <= len(files) <= 200_000
        and 1 <= manifest["chunk_bytes"] <= MAX_CHUNK_BYTES
        and all(0 <= size <= 2**40 for size in sizes)
        and sum(sizes) <= 2**42
        and len({name for entry in manifest["inputs"] for name in entry["fields"]}) <= 100_000
        and all(a < b for a, b in pairwise(paths))
        and all(DIGEST.fullmatch(entry["digest"]) for entry in files)
    )


def check_files(manifest: Mapping[str, Any]) -> None:
    """Raises ProtocolError for a version that counts, and whose files may not be fetched."""
    paths = {entry["path"] for entry in manifest["files"]}
    folders = {"/".join(parts[:end]) for parts in (path.split("/") for path in paths) for end in range(1, len(parts))}
    largest = max(entry["size"] for entry in manifest["files"])
    if not all(map(_is_path, paths)) or paths & folders or largest > 2**24 * manifest["chunk_bytes"]:
        raise ProtocolError("a path that leads elsewhere, a file below a file, or too many chunks")


def _is_path(path: str) -> bool:
    parts = path.split("/")
    return (
        len(path.encode()) <= 1_000
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        and not set(path) & set("\\:*")
        and path.isprintable()
    )


@dataclass(frozen=True)
class Entry:
    """What counts under one key of the registry."""

    kind: str  # the payload type
    envelope: Mapping[str, Any]
    value: Mapping[str, Any]


def original(release: Mapping[str, Any]) -> int:
    """The sequence of the release that this one repeats, or its own."""
    sequence: int = release["sequence"] if release["restores"] is None else release["restores"]
    return sequence


@dataclass
class Image:
    """What the registry says so far; `apply` takes its records in offset order."""

    trusted: tuple[Ed25519PublicKey, ...] = ()  # each may sign for every model, one suffices; without any, all counts
    repository: str | None = None
    versions: dict[tuple[str, int], Entry] = field(default_factory=dict)
    releases: dict[tuple[str, int], Entry] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # key -> why its latest record counts for nothing

    def apply(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            return
        try:
            self._apply(key.decode(), unframe(value, ENVELOPE)[1])
        except (ProtocolError, UnicodeDecodeError) as error:
            self.refused[key.decode(errors="replace")] = str(error)

    def _apply(self, key: str, envelope: dict[str, Any]) -> None:
        kind = envelope["payload_type"]
        if key == "repository" and self.repository is None and kind.endswith(".repository+avro"):
            uuid = unframe(envelope["payload"], REPOSITORY)[1]["uuid"]
            self.repository = uuid if UUID.fullmatch(uuid) else None
        if not (named := KEY.fullmatch(key)) or self.repository is None:
            return
        of_release, place = named[1] == "release", (named[2], int(named[3]))
        if kind not in TYPES or of_release != (TYPES[kind] is RELEASE) or TYPES[kind] is REPOSITORY:
            raise ProtocolError(f"a {kind} under {key}")
        if self.trusted and not signers(envelope, self.trusted):
            raise ProtocolError("nobody trusted signed it")
        payload = TYPES[kind][0].completed(unframe(envelope["payload"], TYPES[kind])[1])
        number = payload["sequence" if of_release else "version"]
        if (payload["repository"], payload["model"], number) != (self.repository, *place):
            raise ProtocolError("it belongs elsewhere")
        if TYPES[kind] is MANIFEST and not counts(payload):
            raise ProtocolError("it declares more than is allowed")
        counting = self.releases if of_release else self.versions
        before = counting.get(place)
        if before is None or (TYPES[kind] is WITHDRAWN and before.kind != kind):
            counting[place] = Entry(kind, envelope, payload)
        elif before.envelope["payload"] == envelope["payload"]:
            signatures = [*before.envelope["signatures"]]
            signatures += [one for one in envelope["signatures"] if one not in signatures]
            counting[place] = replace(before, envelope={**envelope, "signatures": signatures})

    def withdrawn(self, model: str, version: int) -> bool:
        return TYPES[self.versions[model, version].kind] is WITHDRAWN

    def champion(self, model: str, *, acted_on: int = 0) -> Entry:
        """The release with the highest sequence, which must not be below the one the client acted on before."""
        newest = self.next_number(self.releases, model) - 1
        if newest < acted_on:
            raise ProtocolError(f"the newest release of {model} is {newest}, after {acted_on} was seen: replayed")
        if newest == 0:
            raise ProtocolError(f"nothing of {model} was released")
        return self.releases[model, newest]

    def rollback_target(self, model: str) -> Entry | None:
        """The release a rollback repeats, if there is one."""
        champion = self.champion(model).value
        origin = original(champion)
        for (_, sequence), entry in sorted(self.releases.items(), key=lambda item: -item[0][1]):
            version = entry.value["version"]
            if entry.value["model"] != model or sequence >= origin or version == champion["version"]:
                continue
            if (model, version) in self.versions and not self.withdrawn(model, version):
                return entry
        return None

    @staticmethod
    def next_number(places: Mapping[tuple[str, int], Entry], model: str) -> int:
        return max((number for name, number in places if name == model), default=0) + 1
