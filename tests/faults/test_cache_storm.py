"""One cache, too small, under processes that are killed and hands that delete and damage what lies there."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from contextlib import closing, suppress
from pathlib import Path

from modelcast.errors import CacheError
from modelcast.files.cache import Cache, blobs_folder, views_folder

from .cache_child import BACKBONE, HEAD_BYTES
from .scorer_processes import ROOT

PROCESSES = 3
SECONDS = 12.0
# One backbone and a head or two: whatever is fetched has to push something out.
LIMIT_BYTES = len(BACKBONE) + 2 * HEAD_BYTES
FETCHES_MIN = 50


class Fetcher(threading.Thread):
    """Keeps one process running, however often it is killed; hears what it says."""

    def __init__(self, cache: Path, seed: str) -> None:
        super().__init__(daemon=True)
        self._arguments = [str(cache), str(LIMIT_BYTES)]
        self._seed = seed
        self.said: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self.is_ending = False

    def run(self) -> None:
        starts = 0
        while not self.is_ending and not self.wrong:
            starts += 1
            line = [sys.executable, "-m", "tests.faults.cache_child", *self._arguments, f"{self._seed}-{starts}"]
            with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
                self.process = child
                if self.is_ending:  # `kill` came while this one was being started
                    child.kill()
                assert child.stdout is not None
                last = deque(map(self._hear, child.stdout), maxlen=20)
            if child.returncode != -signal.SIGKILL:
                self.wrong.append(f"ended with {child.returncode}: {''.join(last)}")

    def _hear(self, line: str) -> str:
        self.said[line.partition(" ")[0].strip()] += 1
        return line

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    other = path.with_name(f"{path.name}.other")
    other.write_bytes(data)
    other.replace(path)  # in place it would be a mapped file's bytes that change: nobody can be kept from that


def meddle(cache: Path, chance: random.Random) -> None:
    """Does something that may happen to a cache."""
    what = chance.choice(["unlink", "flip", "folder", "clear"])
    if what == "folder":
        shutil.rmtree(chance.choice([cache, views_folder(cache), blobs_folder(cache)]))
    elif what == "clear":
        with closing(Cache(cache)) as opened:
            opened.clear()
    elif blobs := list(blobs_folder(cache).glob("*")):
        (Path.unlink if what == "unlink" else flip)(chance.choice(blobs))


def test_f38_f44_whatever_happens_to_a_cache_nothing_wrong_is_ever_handed_out(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    cache = tmp_path / "cache"
    fetchers = [Fetcher(cache, f"{seed}-{number}") for number in range(PROCESSES)]
    for fetcher in fetchers:
        fetcher.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline or sum(fetcher.said["ok"] for fetcher in fetchers) < FETCHES_MIN:
        assert time.monotonic() < deadline + 180, [fetcher.said for fetcher in fetchers]
        assert not any(fetcher.wrong for fetcher in fetchers), [fetcher.wrong for fetcher in fetchers]
        time.sleep(chance.uniform(0.02, 0.2))  # the storm's own pace
        if chance.random() < 0.2:
            chance.choice(fetchers).kill()
        else:
            with suppress(OSError, CacheError):  # it met with somebody who is doing the same
                meddle(cache, chance)
    for fetcher in fetchers:
        fetcher.is_ending = True
        fetcher.kill()
    for fetcher in fetchers:
        fetcher.join(60)
        assert not fetcher.is_alive()
    print([fetcher.said for fetcher in fetchers])
    assert not any(fetcher.wrong for fetcher in fetchers), [fetcher.wrong for fetcher in fetchers]
    assert sum(fetcher.said["ok"] for fetcher in fetchers) >= FETCHES_MIN

    with closing(Cache(cache, limit=LIMIT_BYTES)) as last:  # nothing of the dead is left, and the limit holds again
        last.trim()
        assert len(list(views_folder(cache).glob("*.lock"))) == 1
        assert sum(path.stat().st_size for path in blobs_folder(cache).iterdir()) <= LIMIT_BYTES
    assert list(views_folder(cache).iterdir()) == []
