"""What `consumer/snapshot.py` promises: what is chosen, what a file says again, and which files count for nothing."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast import codec
from modelcast.config import Connection
from modelcast.consumer import snapshot as module
from modelcast.consumer.policy import Load, RefusedVersion, View, decide
from modelcast.consumer.snapshot import MAX_VERSIONS, Snapshot, SnapshotStore, image_of, needs_of
from modelcast.errors import CacheError
from modelcast.log import LogRecord
from modelcast.names import ModelRef
from modelcast.records import FORMAT_VERSION, Release
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.image import RegistryImage
from modelcast.trust.admission import EVERYTHING

from .registry_records import REPOSITORY, manifest, records, release, withdrawn

OTHER = replace(REPOSITORY, uuid="0b7a4c1e-0000-4000-8000-000000000002")


def image_of_records(found: list[LogRecord]) -> RegistryImage:
    delta = RegistryDelta(RegistryImage())
    for record in found:
        delta.replay(record)
    return delta.apply()


def kept(*payloads: codec.Payload, model: str = "fraud", pinned: tuple[int, ...] = (), read_ms: int = 1) -> Snapshot:
    """The snapshot of a registry that holds these."""
    found = records(*payloads)
    image = image_of_records(found)
    needs = needs_of(image, model, pinned)
    chosen = [record for record in found if any(need.is_met_by(record) for need in needs)]
    return Snapshot(model, image.revision, tuple(chosen), read_ms)


SMALL = kept(REPOSITORY, manifest(1), release(1, 1))


class TestChoice:
    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=12))
    def test_a_snapshot_is_decided_on_as_the_registry_is(self, steps: list[tuple[bool, int]]) -> None:
        """Whatever the history of releases and rollbacks: the same version is loaded, also where one is refused."""
        payloads: list[codec.Payload] = [REPOSITORY, *(manifest(version) for version in range(1, 7))]
        for sequence, (is_rollback, number) in enumerate(steps, start=1):
            earlier = (payload for payload in payloads if isinstance(payload, Release) and payload.sequence == number)
            restored = next(earlier, None) if is_rollback else None
            version = number if restored is None else restored.version
            payloads.append(release(sequence, version, restores=None if restored is None else number))
        whole = image_of_records(records(*payloads))
        part = image_of([kept(*payloads)], EVERYTHING)
        assert part is not None
        view = View(ModelRef("fraud"))
        for _ in range(7):
            first, second = decide(whole, view), decide(part, view)
            assert first == second
            if not isinstance(first, Load):
                break
            refused = RefusedVersion(first.key, "golden", "", 0, first.basis)
            view = replace(view, refused={**view.refused, first.key: refused})

    def test_a_long_history_is_kept_in_part(self) -> None:
        payloads = [REPOSITORY, *(manifest(version) for version in range(1, 100))]
        payloads += [release(version, version) for version in range(1, 100)]
        chosen = kept(*payloads)
        assert len(chosen.records) == 1 + 2 * MAX_VERSIONS

    def test_a_withdrawal_takes_the_place_of_its_version(self) -> None:
        image = image_of([kept(REPOSITORY, manifest(1), release(1, 1), withdrawn(1))], EVERYTHING)
        assert image is not None
        assert image.models["fraud"].versions == {1: withdrawn(1)}

    def test_pinned_versions_are_kept(self) -> None:
        image = image_of([kept(REPOSITORY, manifest(1), manifest(2), manifest(3), pinned=(2,))], EVERYTHING)
        assert image is not None
        assert set(image.models["fraud"].versions) == {2}

    def test_of_a_model_that_is_not_there_nothing_is_kept(self) -> None:
        assert needs_of(image_of_records(records(REPOSITORY)), "fraud") == ()


class TestImage:
    def test_models_of_one_repository_are_put_together(self) -> None:
        whole = (REPOSITORY, manifest(1), release(1, 1), manifest(1, model="churn"), release(1, 1, model="churn"))
        image = image_of([kept(*whole), kept(*whole, model="churn")], EVERYTHING)
        assert image is not None
        assert set(image.models) == {"fraud", "churn"}

    def test_of_two_repositories_the_one_read_last_counts(self) -> None:
        old = kept(REPOSITORY, manifest(1), read_ms=1, pinned=(1,))
        new = kept(OTHER, manifest(2, model="churn", repository=OTHER.uuid), model="churn", pinned=(2,), read_ms=2)
        image = image_of([old, new], EVERYTHING)
        assert image is not None
        assert image.repository == OTHER
        assert set(image.models) == {"churn"}

    def test_a_newer_format_and_no_repository_are_nothing(self) -> None:
        newer = replace(REPOSITORY, format_version=FORMAT_VERSION + 1)
        assert image_of([kept(newer, manifest(1))], EVERYTHING) is None
        assert image_of([replace(SMALL, records=SMALL.records[1:])], EVERYTHING) is None
        assert image_of([], EVERYTHING) is None


class TestStore:
    def test_what_was_saved_is_loaded(self, tmp_path: Path) -> None:
        assert SnapshotStore(tmp_path / "r", "here").save(SMALL)
        (found,) = SnapshotStore(tmp_path / "r", "here").load({"fraud"})
        assert (found.model, found.revision, found.repository) == ("fraud", SMALL.revision, REPOSITORY.uuid)
        assert found.content == SMALL.content
        assert found.read_ms > 0

    def test_only_this_user_reads_it(self, tmp_path: Path) -> None:
        SnapshotStore(tmp_path / "r", "here").save(SMALL)
        (path,) = tmp_path.glob("r/*/fraud.json")
        assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)

    def test_an_older_image_takes_nothing_from_a_newer_one(self, tmp_path: Path) -> None:
        store = SnapshotStore(tmp_path, "here")
        newer = kept(REPOSITORY, manifest(1), release(1, 1), manifest(2), release(2, 2))
        assert store.save(newer)
        assert not store.save(SMALL)
        assert store.load({"fraud"})[0].content == newer.content

    def test_a_registry_made_anew_takes_the_place_of_the_one_before(self, tmp_path: Path) -> None:
        store = SnapshotStore(tmp_path, "here")
        store.save(kept(REPOSITORY, manifest(1), release(1, 1), manifest(2), release(2, 2)))
        anew = kept(OTHER, manifest(1, repository=OTHER.uuid), pinned=(1,))
        assert store.save(anew)
        assert store.load({"fraud"})[0].repository == OTHER.uuid

    @pytest.mark.parametrize("offset", [0, 10, 70, -1])
    def test_a_file_with_one_bit_changed_counts_for_nothing(
        self, offset: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store, path = self._saved(tmp_path)
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)
        assert store.load({"fraud"}) == ()
        assert str(path) in caplog.text

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"nonsense", b'{"scope": "here", "model": "fraud", "revision": 1, "records": [{}]}']
    )
    def test_what_is_no_snapshot_counts_for_nothing(self, body: bytes, tmp_path: Path) -> None:
        store, path = self._saved(tmp_path)
        path.write_bytes(sha256(body).hexdigest().encode() + b"\n" + body)
        assert store.load({"fraud"}) == ()

    def test_a_file_of_another_model_or_scope_counts_for_nothing(self, tmp_path: Path) -> None:
        store, path = self._saved(tmp_path)
        (path.parent / "churn.json").write_bytes(path.read_bytes())
        assert [found.model for found in store.load({"churn", "fraud"})] == ["fraud"]
        other = SnapshotStore(tmp_path, "there")
        other.save(SMALL)
        (there,) = (found for found in tmp_path.glob("*/fraud.json") if found != path)
        there.write_bytes(path.read_bytes())
        assert other.load({"fraud"}) == ()

    def test_a_file_that_is_too_large_is_not_read_into_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, _ = self._saved(tmp_path)
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
        assert store.load({"fraud"}) == ()

    def test_others_are_loaded_too_the_latest_of_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_OTHERS", 2)
        store, _ = self._saved(tmp_path)
        for age, model in enumerate(["a", "b", "c"]):
            store.save(replace(SMALL, model=model))
            (path,) = tmp_path.glob(f"*/{model}.json")
            os.utime(path, (1_000_000 - age, 1_000_000 - age))
        assert [found.model for found in store.load({"fraud"})] == ["fraud", "a", "b"]

    def test_the_longest_untouched_are_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_FILES", 2)
        store, path = self._saved(tmp_path)
        os.utime(path, (1, 1))
        store.save(replace(SMALL, model="a"))
        SnapshotStore(tmp_path, "here").save(replace(SMALL, model="b"))
        assert {found.name for found in tmp_path.glob("*/*.json")} == {"a.json", "b.json"}

    def test_the_same_again_is_not_written_again_and_is_as_new(self, tmp_path: Path) -> None:
        store, path = self._saved(tmp_path)
        inode = path.stat().st_ino
        os.utime(path, (1, 1))
        assert store.save(replace(SMALL, revision=SMALL.revision + 7))
        assert path.stat().st_ino == inode
        assert path.stat().st_mtime > 1

    def test_touching_says_when_the_registry_was_read(self, tmp_path: Path) -> None:
        store, path = self._saved(tmp_path)
        os.utime(path, (1, 1))
        store.touch(["fraud", "nobody"])
        assert store.load({"fraud"})[0].read_ms > 1_000

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "r").write_text("a file")
        with pytest.raises(CacheError, match="can't be kept in"):
            SnapshotStore(tmp_path / "r", "here").save(SMALL)
        assert SnapshotStore(tmp_path / "r", "here").load({"fraud"}) == ()

    def test_a_cluster_is_known_by_its_brokers_in_any_order(self, tmp_path: Path) -> None:
        SnapshotStore.of(Connection({"bootstrap.servers": "a:1, b:2"}, "p"), tmp_path).save(SMALL)
        assert SnapshotStore.of(Connection({"bootstrap.servers": "B:2,a:1"}, "p"), tmp_path).load(["fraud"])
        assert not SnapshotStore.of(Connection({"bootstrap.servers": "a:1,b:2"}, "q"), tmp_path).load(["fraud"])
        assert not SnapshotStore.of(Connection({"bootstrap.servers": "a:1"}, "p"), tmp_path).load(["fraud"])

    @staticmethod
    def _saved(folder: Path) -> tuple[SnapshotStore, Path]:
        store = SnapshotStore(folder, "here")
        store.save(SMALL)
        (path,) = folder.glob("*/fraud.json")
        assert json.loads(path.read_bytes().partition(b"\n")[2])["model"] == "fraud"
        return store, path
