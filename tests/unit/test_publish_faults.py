"""Publishing on a log that loses answers, doubles and reorders chunks, and brings records late: whole or not at all."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from modelcast.errors import BrokerError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.log import BEGINNING, Log
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.testing import Faults, FaultyLog, MemoryLog
from modelcast.topics import Topics

from .prepared import prepared

TOPICS = Topics("faulty")
VERSIONS = 3
# Each asks some ten times, and one in three succeeds: all of these fail once in an age.
MOST_TRIES = 100
FAULTS = Faults(reorder=0.3, duplicate=0.3, delay=0.5, cut=0.1)
# Some chunks of half a megabyte each.
FILES = {"model.onnx": 700_000, "tensors/w": 2_300_000}


def image_of(log: Log) -> RegistryImage:
    return RegistryReader(log, TOPICS).catch_up(5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", range(3))
def test_f06_whatever_is_lost_doubled_late_or_out_of_order_versions_are_whole_or_not_there(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    sound = MemoryLog()
    init(sound, TOPICS, blob_partitions=2)
    faulty = FaultyLog(sound, FAULTS, seed=seed)
    published: dict[int, dict[str, bytes]] = {}
    tries = 0
    for number in range(1, VERSIONS + 1):
        dice = Random(f"{seed} {number}")
        files = {path: dice.randbytes(size) for path, size in FILES.items()}
        model = prepared(tmp_path / f"source-{number}", files)
        version = 0
        while not version:
            tries += 1
            assert tries < MOST_TRIES, f"seed {seed}: nothing comes through"
            try:
                version = RegistryWriter(faulty, TOPICS).publish("fraud", model, release=True).manifest.version
            except BrokerError:
                entry = image_of(sound).models.get("fraud")
                known = set() if entry is None else set(entry.versions)
                # What failed may be there all the same: whoever lost the answer is told so, and looks.
                for landed in known - published.keys():
                    published[landed] = files
            else:
                published[version] = files
    entry = image_of(sound).model("fraud")
    assert entry.champion is not None
    assert entry.champion.version == max(published)
    assert entry.versions.keys() == published.keys()
    fetcher = Fetcher(sound, TOPICS, Cache(tmp_path / "cache"))
    for version, record in entry.versions.items():
        assert isinstance(record, VersionRecord)
        assert contents(fetcher.fetch(record)) == published[version], f"seed {seed}, version {version}"
    ends = sound.end_offsets(TOPICS.blobs, committed=False)
    chunks = [r.key for r in scan(sound, TOPICS.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=5)]
    assert len(chunks) > len(set(chunks)), "there were no faults"
