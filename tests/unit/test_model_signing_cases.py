"""What OpenSSF Model Signing 1.0 demands of whoever verifies a model, case by case, on this format.

Its suite feeds Sigstore bundles to a program; a version here has none, so the cases are made anew: a real publication,
signed, altered as the case says, and then read under a policy and fetched. docs/TRUST.md says what does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from modelcast import codec, digest
from modelcast.errors import IntegrityError, ModelcastError, NotFoundError, StructureError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.log import BEGINNING, LogRecord
from modelcast.names import ModelRef
from modelcast.publisher.change import Author
from modelcast.publisher.session import RegistryWriter
from modelcast.records import Envelope, EnvelopeSignature, FileEntry, Manifest
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, RegistryKey, Topics, blob_partition

from .prepared import prepared
from .trust_rig import admission, forged, key

TOPICS = Topics("test")
VERSION = RegistryKey("version", "fraud", 1).encode()
FILES = {"model.onnx": Random(1).randbytes(900), "tensors/a": Random(2).randbytes(900), "tensors/b": b"b" * 900}
UNDER = admission("fraud*: alice")

Change = Callable[[LogRecord], LogRecord | None]


class Signed:
    """A signed version on a log, and copies of that log as an attacker would have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = MemoryLog()
        init(self.log, TOPICS, blob_partitions=2)
        author = Author("tester", lambda: 1)
        writer = RegistryWriter(self.log, TOPICS, author=author, signers=[key("alice")])
        writer.publish("fraud", prepared(folder / "source", FILES), release=False)

    def copy(self, *, registry: Change = lambda record: record, blobs: Change = lambda record: record) -> MemoryLog:
        """The log with each record of a topic changed, or left out."""
        made = MemoryLog()
        for spec in TOPICS.specs(blob_partitions=2, replication_factor=1):
            made.create(spec)
        writer = made.writer()
        for topic, change in ((TOPICS.registry, registry), (TOPICS.blobs, blobs)):
            ends = self.log.end_offsets(topic, committed=False)
            for record in scan(self.log, topic, dict.fromkeys(ends, BEGINNING), ends, timeout_s=5):
                changed = change(record)
                if changed is not None:
                    writer.send(topic, key=changed.key, value=changed.value, partition=changed.partition)
        return made

    def with_envelope(self, change: Callable[[Envelope], Envelope]) -> MemoryLog:
        """The log with the version's envelope changed."""

        def changed(record: LogRecord) -> LogRecord:
            if record.key != VERSION or record.value is None:
                return record
            return replace(record, value=codec.encode_envelope(change(codec.decode_envelope(record.value))))

        return self.copy(registry=changed)

    def with_files(self, change: Callable[[tuple[FileEntry, ...]], tuple[FileEntry, ...]]) -> MemoryLog:
        """The log with another list of files, signed by the right key: a signer who errs, or means ill."""

        def resigned(envelope: Envelope) -> Envelope:
            manifest = codec.unseal(envelope)
            assert isinstance(manifest, Manifest)
            sealed = codec.seal(replace(manifest, files=change(manifest.files)))
            return forged(sealed, [key("alice").sign(sealed.payload_type, sealed.payload)])

        return self.with_envelope(resigned)

    def verified(self, log: MemoryLog, cache: Path | None = None) -> dict[str, bytes]:
        """What a consumer gets: files by path. Raises ModelcastError if it refuses."""
        with closing(RegistryReader(log, TOPICS, admission=UNDER)) as reader:
            record = reader.catch_up(5).resolve(ModelRef("fraud", 1))
        with closing(Cache(cache or self.folder / "cache")) as opened:
            view = Fetcher(log, TOPICS, opened).fetch(record)
            return {str(path.relative_to(view)): path.read_bytes() for path in view.rglob("*") if path.is_file()}


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Signed:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    return Signed(tmp_path)


def chunk_of(path: str) -> bytes:
    return digest.of_bytes(FILES[path]).encode()


def test_an_intact_model_is_accepted(signed: Signed) -> None:
    assert signed.verified(signed.copy()) == FILES


class TestFiles:
    def test_a_changed_file_is_refused(self, signed: Signed) -> None:
        def change(record: LogRecord) -> LogRecord:
            value = record.value or b""
            return replace(record, value=b"X" + value[1:]) if chunk_of("tensors/a") in (record.key or b"") else record

        with pytest.raises(IntegrityError, match="tensors/a"):
            signed.verified(signed.copy(blobs=change))

    def test_a_missing_file_is_refused(self, signed: Signed) -> None:
        left_out = signed.copy(blobs=lambda record: None if chunk_of("tensors/a") in (record.key or b"") else record)
        with pytest.raises(IntegrityError, match="tensors/a"):
            signed.verified(left_out)

    def test_files_that_changed_places_are_refused(self, signed: Signed) -> None:
        one, other = chunk_of("tensors/a"), chunk_of("tensors/b")

        def swap(record: LogRecord) -> LogRecord:
            raw = record.key or b""
            moved = raw.replace(one, b"?").replace(other, one).replace(b"?", other)
            found = ChunkKey.decode(moved)
            assert found is not None
            return replace(record, key=moved, partition=blob_partition(found.model, found.digest, 2))

        with pytest.raises(IntegrityError):
            signed.verified(signed.copy(blobs=swap))

    def test_a_file_nobody_signed_is_not_there(self, signed: Signed) -> None:
        log = signed.copy()
        extra = ChunkKey("fraud", digest.of_bytes(b"extra"), 900, 0).encode()
        log.writer().send(TOPICS.blobs, key=extra, value=b"extra", partition=0)
        assert signed.verified(log) == FILES

    def test_a_link_in_the_cache_is_not_followed(self, signed: Signed, tmp_path: Path) -> None:
        signed.verified(signed.copy(), tmp_path / "shared")
        outside = tmp_path / "outside"
        outside.write_bytes(FILES["tensors/a"])
        (cached,) = (tmp_path / "shared").rglob(chunk_of("tensors/a").decode().removeprefix("sha256:"))
        cached.unlink()
        cached.symlink_to(outside)
        assert signed.verified(signed.copy(), tmp_path / "shared") == FILES
        assert not cached.is_symlink()


@pytest.mark.parametrize("hint", [(0, -5, -1), (99, 0, 3), (1, 1 << 60, 1 << 61), (-1, 0, 0), (0, 1 << 40, 0)])
def test_hints_which_nobody_signed_lead_nobody_astray(hint: tuple[int, int, int], signed: Signed) -> None:
    def misled(envelope: Envelope) -> Envelope:
        return replace(envelope, hints=tuple(replace(known, **places) for known in envelope.hints))

    places = dict(zip(("partition", "first_offset", "last_offset"), hint, strict=True))
    assert signed.verified(signed.with_envelope(misled)) == FILES


class TestResources:
    """The list of files: signed, and refused all the same where it is not what a list has to be."""

    def test_as_it_should_be_it_is_accepted(self, signed: Signed) -> None:
        assert signed.verified(signed.with_files(lambda files: files)) == FILES

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda files: (), "0 files"),
            (lambda files: files[::-1], "out of order"),
            (lambda files: (*files, files[-1]), "a path twice"),
        ],
        ids=["empty", "unsorted", "twice"],
    )
    def test_a_list_out_of_shape_is_no_manifest(
        self, change: Callable[[tuple[FileEntry, ...]], tuple[FileEntry, ...]], words: str, signed: Signed
    ) -> None:
        log = signed.with_files(change)
        with pytest.raises(NotFoundError):
            signed.verified(log)
        with closing(RegistryReader(log, TOPICS, admission=UNDER)) as reader:
            assert words in reader.catch_up(5).faults[0].message

    @pytest.mark.parametrize("path", ["/etc/passwd", "../above", "tensors/../../above", "tensors/", "a//b", "./a", ""])
    def test_a_path_that_leaves_the_model_or_is_no_file_is_refused(self, path: str, signed: Signed) -> None:
        def renamed(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
            return tuple(sorted((replace(files[1], path=path), *files[2:]), key=lambda entry: entry.path))

        with pytest.raises(StructureError):
            signed.verified(signed.with_files(renamed))


class TestSignatures:
    def test_a_key_id_left_out_is_accepted(self, signed: Signed) -> None:
        nameless = signed.with_envelope(
            lambda envelope: forged(envelope, [EnvelopeSignature("", s.signature) for s in envelope.signatures])
        )
        assert signed.verified(nameless) == FILES

    @pytest.mark.parametrize(
        "change",
        [
            lambda envelope: forged(envelope, []),
            lambda envelope: forged(envelope, [key("bob").sign(envelope.payload_type, envelope.payload)]),
            lambda envelope: forged(
                envelope,
                [
                    EnvelopeSignature(
                        key("alice").key_id, key("bob").sign(envelope.payload_type, envelope.payload).signature
                    )
                ],
            ),
            lambda envelope: forged(
                envelope, [EnvelopeSignature(s.key_id, s.signature[::-1]) for s in envelope.signatures]
            ),
            lambda envelope: replace(envelope, payload=envelope.payload[:-1] + b"\x07"),
            lambda envelope: replace(envelope, payload_type="application/vnd.in-toto+json"),
            lambda envelope: forged(envelope, [key("alice").sign("application/vnd.in-toto+json", envelope.payload)]),
        ],
        ids=["none", "wrong key", "a false key id", "altered", "over another statement", "another type", "over it"],
    )
    def test_anything_but_the_right_keys_signature_over_this_statement_is_refused(
        self, change: Callable[[Envelope], Envelope], signed: Signed
    ) -> None:
        with pytest.raises(ModelcastError, match="is not admitted"):
            signed.verified(signed.with_envelope(change))
