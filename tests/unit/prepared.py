"""A prepared model made of plain files, for tests of what happens to it on the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelcast import digest
from modelcast.publisher.prepare import PreparedModel
from modelcast.records import FileEntry, Tolerance

from .registry_records import SIGNATURE


def prepared(directory: Path, files: Mapping[str, bytes]) -> PreparedModel:
    """Writes `files` under `directory` and describes them."""
    entries = []
    for path, data in sorted(files.items()):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
        entries.append(FileEntry(path, len(data), digest.of_bytes(data)))
    return PreparedModel(
        directory=directory,
        files=tuple(entries),
        signature=SIGNATURE,
        ir_version=10,
        opsets={"": 21},
        tolerance=Tolerance(),
        probe=None,
        frameworks={},
    )
