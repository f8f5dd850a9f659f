"""The inputs that are kept: `corpus/events` holds tapes, `corpus/readers/<name>` what a reader is to read.

A guided run takes those of readers with the reader's number before each; `python -m tests.fuzz.corpora keep` brings
what it found back, as few as reach what all of them reach.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .catalogue import readers
from .reader import Reader

CORPUS = Path(__file__).parent / "corpus"
# Longer ones are worth less than the room they take in every checkout.
_MAX_KEPT_BYTES = 2_000


def folder_of(reader: Reader) -> Path:
    """Where a reader's inputs are kept."""
    return CORPUS / "readers" / reader.name.replace(" ", "-")


def inputs(reader: Reader) -> Iterator[bytes]:
    """A reader's seeds, and what was kept."""
    yield from reader.seeds
    if folder_of(reader).is_dir():
        yield from (path.read_bytes() for path in sorted(folder_of(reader).iterdir()))


def lay_out(what: str, folder: Path) -> None:
    """Writes what is kept of `events` or `readers` into a folder, as the guided fuzzer reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    if what == "events":
        for path in (CORPUS / "events").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return
    for number, reader in enumerate(readers()):
        for data in inputs(reader):
            _write(folder, bytes([number]) + data)


def keep(found: Path) -> None:
    """Takes what a guided run left in `found/events` and `found/readers` into the corpus."""
    for what in ("events", "readers"):
        with tempfile.TemporaryDirectory(prefix="modelcast-fuzz-") as folder:
            kept, merged = Path(folder) / "kept", Path(folder) / "merged"
            lay_out(what, kept)
            merged.mkdir()
            folders = [str(merged), str(kept), str(found / what)]
            subprocess.run([sys.executable, "-m", "tests.fuzz.guided", what, "-merge=1", *folders], check=True)
            for path in sorted(merged.iterdir()):
                data = path.read_bytes()
                if what == "events":
                    _write(CORPUS / "events", data)
                elif data and len(data) <= _MAX_KEPT_BYTES:
                    reader = readers()[data[0] % len(readers())]
                    if data[1:] not in reader.seeds:
                        _write(folder_of(reader), data[1:])


def _write(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    if sys.argv[1:2] != ["keep"]:
        sys.exit("usage: python -m tests.fuzz.corpora keep [FOLDER]")
    keep(Path(sys.argv[2] if len(sys.argv) > 2 else ".fuzz"))
