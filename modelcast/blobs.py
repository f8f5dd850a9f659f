"""Files to chunks and back; holds no file and does no I/O but `cut`'s reading.

- A file is cut into chunks of `chunk_bytes`; only the last may be shorter, and an empty file has none.
- `FileAssembly` says where a chunk belongs and what is still missing; whoever feeds it writes the bytes. Chunks may
  come in any order and more than once: the last one of an index counts, as in a compacted topic.
- Chunks carry no digest of their own. A wrong length is known at once and names the chunk; a wrong byte is known when
  the file is whole and names the file.
- Nothing is allocated by a declared size: one bit per declared chunk at most, and the number of chunks is bounded.

    assembly = FileAssembly(entry, chunk_bytes)
    for index, chunk in arrivals:
        os.pwrite(file, chunk, assembly.accept(index, chunk))
        assembly.hash(index, chunk)
    assembly.finish(blocks_from(assembly.hashed_bytes))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelcast.digest import is_digest
from modelcast.errors import IntegrityError, StructureError
from modelcast.records import FileEntry

# A file of 1 TiB in chunks of 64 KiB; its map of what arrived takes 2 MiB.
MAX_CHUNKS = 1 << 24

# Path of a file in a version's tree: far longer than any converter writes, short enough for every file system.
MAX_PATH_BYTES = 1_000
MAX_NAME_BYTES = 255


def check_path(path: str) -> str:
    """Returns `path` if it can only mean a file below the folder it is joined to.

    Raises:
        StructureError: It is absolute, leaves the folder, is not in its shortest form, or holds what some system reads
            differently (backslash, colon, control characters).
    """
    parts = path.split("/")
    legal = (
        0 < len(path.encode("utf-8", "surrogatepass")) <= MAX_PATH_BYTES
        and all(
            part not in {"", ".", ".."} and len(part.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
            for part in parts
        )
        and path.isprintable()
        and not set("\\:*") & set(path)
    )
    if not legal:
        raise StructureError(
            f"{path[:200]!r} is not a path of a file within the model",
            hint="Files of a model have plain relative names such as tensors/0.bin.",
        )
    return path


def chunk_count(size: int, chunk_bytes: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return -(-size // chunk_bytes)


def cut(path: Path, chunk_bytes: int) -> Iterator[bytes]:
    """The chunks of a file in order."""
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            yield chunk


class FileAssembly:
    """What has arrived of one file.

    Two threads may share one: the first accepts, the second hashes what was accepted, in the same order. All else is
    for the first, and `finish` and `hashed_bytes` only once the second has hashed everything.

    Args:
        entry: The file as its manifest declares it.
        chunk_bytes: Size of its chunks.

    Raises:
        IntegrityError: The declared sizes are out of bounds.
    """

    def __init__(self, entry: FileEntry, chunk_bytes: int) -> None:
        if chunk_bytes < 1 or entry.size < 0 or not is_digest(entry.digest):
            raise IntegrityError(f"file {entry.path!r} declares {entry.size} bytes, digest {entry.digest!r}")
        self.entry = entry
        self.chunk_bytes = chunk_bytes
        self.chunks = chunk_count(entry.size, chunk_bytes)
        if self.chunks > MAX_CHUNKS:
            raise IntegrityError(f"file {entry.path!r} declares {self.chunks} chunks; at most {MAX_CHUNKS} are taken")
        self._arrived = bytearray()  # one bit a chunk, as long as the highest index seen
        self._count = 0
        self._hasher = hashlib.sha256()
        self._next = 0  # chunks before this one are hashed
        self._replaced = False

    @property
    def missing(self) -> int:
        """How many chunks have not arrived."""
        return self.chunks - self._count

    @property
    def first_missing(self) -> int | None:
        """The lowest index that has not arrived; None if all have."""
        return next((index for index in range(self.chunks) if not self._has(index)), None)

    @property
    def hashed_bytes(self) -> int:
        """Bytes from the file's start that need not be read again for its digest."""
        return 0 if self._replaced else min(self._next * self.chunk_bytes, self.entry.size)

    def accept(self, index: int, chunk: bytes) -> int:
        """Takes one chunk; returns the position in the file its bytes belong at, to be written and then hashed.

        Raises:
            IntegrityError: The file has no such chunk, or the chunk has not its length. Nothing changes.
        """
        if not 0 <= index < self.chunks:
            raise IntegrityError(f"file {self.entry.path!r} has {self.chunks} chunks, but chunk {index} arrived")
        position = index * self.chunk_bytes
        length = min(self.chunk_bytes, self.entry.size - position)
        if len(chunk) != length:
            raise IntegrityError(
                f"chunk {index} of file {self.entry.path!r} has {len(chunk)} bytes; the manifest declares {length}"
            )
        self._mark(index)
        return position

    def hash(self, index: int, chunk: bytes) -> None:
        """Hashes an accepted chunk if it is the next in the file; what comes before its turn is left to `finish`."""
        if index == self._next:
            self._hasher.update(chunk)
            self._next += 1
        elif index < self._next:
            self._replaced = True

    def finish(self, rest: Iterable[bytes] = ()) -> None:
        """Checks the digest of the whole file.

        Args:
            rest: The file's bytes from `hashed_bytes` on, in blocks of any length.

        Raises:
            IntegrityError: A chunk is missing, or the bytes have another length or digest.
        """
        if self.missing:
            raise IntegrityError(
                f"{self.missing} of {self.chunks} chunks of file {self.entry.path!r} are missing, "
                f"the first is chunk {self.first_missing}"
            )
        hasher = hashlib.sha256() if self._replaced else self._hasher.copy()
        size = self.hashed_bytes
        for block in rest:
            hasher.update(block)
            size += len(block)
        if size != self.entry.size:
            raise IntegrityError(f"file {self.entry.path!r} has {size} bytes, not the declared {self.entry.size}")
        if (got := f"sha256:{hasher.hexdigest()}") != self.entry.digest:
            raise IntegrityError(
                f"file {self.entry.path!r} has digest {got}, not the declared {self.entry.digest}",
                hint="A chunk on the topic is damaged: publish the model again with --resend.",
            )

    def _has(self, index: int) -> bool:
        byte = index >> 3
        return byte < len(self._arrived) and bool(self._arrived[byte] >> (index & 7) & 1)

    def _mark(self, index: int) -> None:
        if self._has(index):
            return
        byte = index >> 3
        if byte >= len(self._arrived):
            self._arrived.extend(bytes(byte + 1 - len(self._arrived)))
        self._arrived[byte] |= 1 << (index & 7)
        self._count += 1
