"""What `modelcast/memory.py` promises: freed memory that the allocator holds back goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from modelcast.memory import give_back

BLOCKS, BLOCK_BYTES = 100_000, 1024


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc's allocator is known to hold back"
)
def test_what_was_freed_below_a_block_that_is_in_use_goes_back() -> None:
    blocks = [bytes(BLOCK_BYTES) for _ in range(BLOCKS)]
    last = blocks[-1]
    del blocks
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() >= BLOCKS * BLOCK_BYTES // 2
    assert last == bytes(BLOCK_BYTES)
