"""Where TensorRT keeps the engines it builds: a folder for each content, so that no version runs another's weights.

    <cache>/tensorrt/<content>/<runtime>/…     written by the runtime: engines, timings; private to this user (0700)

- An engine takes minutes to build and is found again at the next load of the same content by the same runtime.
- Folders of the longest unused contents are removed when all together outgrow the limit.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from modelcast import digest
from modelcast.files.cache import explained

# Engines are about as large as their models: some versions of some models, as the cache of files holds.
LIMIT_BYTES = 10 << 30


class Engines:
    """Engine folders below one root.

    Args:
        root: Made when the first folder is asked for.
        runtime: Name of the runtime's release: another one reads no engine of this one.
    """

    def __init__(self, root: Path, runtime: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._root = root
        self._runtime = runtime
        self._limit_bytes = limit_bytes

    def folder(self, content: str) -> Path:
        """The folder of one content (`Manifest.digest`), used now; others make room for it.

        Raises:
            CacheError: It can't be made.
        """
        with explained(self._root):
            own = self._root / digest.hex_part(content)
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            own.mkdir(mode=0o700, exist_ok=True)
            os.utime(own)
            self._trim(own)
            folder = own / self._runtime
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder

    def _trim(self, own: Path) -> None:
        found = sorted((path.stat().st_mtime, path) for path in self._root.iterdir())
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for _, path in found}
        total = sum(sizes.values())
        for _, path in found:
            if total <= self._limit_bytes:
                return
            if path != own:
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]
