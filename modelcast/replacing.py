"""Small files that are there whole or not at all, whoever writes them at the same time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes, *, synced: bool = False, mode: int = 0o600) -> None:
    """Puts `data` in the place of a file, or makes it: readers see the old bytes or the new ones, never a part.

    Args:
        path: Its folder is there.
        data: All of the new file.
        synced: Whether it is to outlive a power failure: its bytes are on the disk before it has its name.
        mode: Its permissions.

    Raises:
        OSError: It can't be written; the file is as it was, and nothing lies beside it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
