"""`Reader`: something that makes sense of bytes from a topic or a file, and the rules it is held to.

- What comes out of it is a value, or one of the errors it declares: nothing else, and never an error of a library.
- An error has a message for people: not empty, not longer than `MAX_MESSAGE_CHARS` for an input of some kilobytes.
- It takes no more memory than `MAX_PEAK_BYTES` and no more time than `MAX_CPU_S`, whatever sizes the bytes declare.
- What it took is as its own `read` says: comes to the same bytes again, is within its bounds, was signed.
"""

from __future__ import annotations

import re
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelcast.errors import ModelcastError

from .damage import damaged
from .entropy import Entropy, pick

# Inputs have some kilobytes. What is kept of one, decoded, may take a hundred times that; a declared size that is
# believed takes gigabytes.
MAX_PEAK_BYTES = 48 << 20
# The slowest takes some milliseconds; a count that is believed takes minutes. Of the processor, so that a busy machine
# is no finding.
MAX_CPU_S = 5.0
MAX_MESSAGE_CHARS = 8_000
# Tracing allocations takes five times as long as not tracing them: one case in so many has it.
TRACED_EVERY = 64
# Peaks of the whole process show what is allocated and touched; they are looked at after every case.
_KILOBYTE = 1024


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        seeds: Whole inputs, all of them good.
        read: Reads an input and holds what it gave to its rules. Raises AssertionError, or what the reader raises.
        refusals: The errors the reader declares.
        draw: Makes an input up; by default a seed is damaged.
        share: How many cases it gets of a hundred of a plain one: the slow ones get fewer.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[ModelcastError], ...] = ()
    draw: Callable[[Entropy], bytes] | None = None
    share: int = 100

    def drawn(self, entropy: Entropy) -> bytes:
        """An input, most often a bad one."""
        if self.draw is not None:
            return self.draw(entropy)
        seed = pick(entropy, self.seeds)
        if entropy.number(0, 1):
            return damaged(entropy, seed, self.seeds) or b""
        for _ in range(entropy.number(1, 2)):
            seed = _misspelt(entropy, seed)
        return seed


# What texts have for values: numbers, quoted texts, words of JSON and TOML.
_VALUES = re.compile(rb'[0-9][0-9.]*|"[^"]*"|true|false|null')
# Values that parsers were seen to stumble over: too large for an integer, a float, a stack, the reader's patience.
_WORDS = (
    b"1e999", b"-1e999", b"NaN", b"9" * 400, b"9" * 5000, b"1" + b"0" * 30, b"-1", b"0", b"1.5", b"true", b"{}",
    b"[" * 3000, b"[" * 3000 + b"]" * 3000, b'{"a":' * 3000, b'""', b'"' + b"x" * 3000 + b'"', b'"\\ud800"', b"[]",
    b"null", b'"1"', b"[[1]]", b'{"a": 1}', b"9223372036854775808", b"1_0", b"0x10", b"1979-05-27",
    b"9999-12-31T23:59:59-23:59", b"0001-01-01T00:00:00+23:59", b"\xff\xfe", b"'", b"\n", b"\r", b"\x00",
    b"\xe2\x80\xa8", b"=", b"#", b'"\x1b[2J"',
)  # fmt: skip


def _misspelt(entropy: Entropy, text: bytes) -> bytes:
    """A text with one of its values replaced, and all else as it was."""
    found = list(_VALUES.finditer(text))
    if not found:
        return text + pick(entropy, _WORDS)
    value = pick(entropy, found)
    return text[: value.start()] + pick(entropy, _WORDS) + text[value.end() :]


class Judge:
    """Puts inputs before one reader; counts what it took and what it refused."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.taken = 0
        self.refused = 0
        # What is imported when it is first used is nobody's input.
        for seed in reader.seeds[:1]:
            reader.read(seed)

    @property
    def judged(self) -> int:
        return self.taken + self.refused

    def judge(self, data: bytes) -> bool:
        """Whether it was taken. Raises AssertionError where a rule was broken, or whatever came out undeclared."""
        if self.judged % TRACED_EVERY == 0 and not tracemalloc.is_tracing():
            return self._traced(data)
        began_s, before = time.process_time(), _peak_bytes()
        took = self._read(data)
        spent_s = time.process_time() - began_s
        assert spent_s < MAX_CPU_S, f"{self.reader.name} took {spent_s:.1f} s for {len(data)} bytes"
        grown = _peak_bytes() - before
        assert grown < MAX_PEAK_BYTES, f"{self.reader.name} took {grown} bytes of memory"
        return took

    def _traced(self, data: bytes) -> bool:
        tracemalloc.start(1)
        try:
            took = self._read(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MAX_PEAK_BYTES, f"{self.reader.name} asked for {peak} bytes of memory"
        return took

    def _read(self, data: bytes) -> bool:
        try:
            self.reader.read(data)
        except self.reader.refusals as error:
            check_told(str(error))
            self.refused += 1
            return False
        self.taken += 1
        return True


def check_told(message: str) -> None:
    """Raises AssertionError if that is nothing to tell a person."""
    assert 0 < len(message) <= MAX_MESSAGE_CHARS, f"a message of {len(message)} characters"
    assert "MemoryError" not in message, f"a declared size was believed: {message[:200]}"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE
