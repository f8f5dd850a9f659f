"""What goes wrong with events on their way: one value, a whole, made into another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .entropy import Entropy, pick

# Varints that decoders were seen to trust: 2^60 and its like as lengths and counts, the least and the most of 64 bits,
# one byte more than there may be, one that never ends.
_NUMBERS = (
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x20",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80" * 10 + b"\x00",
    b"\x80\x80\x80\x80\x10",
    b"\x01",
    b"\x00",
    b"\xff",
    b"\x80\x00",
)
_FRAMES = (
    b"\xc3\x01",
    b"\xc3\x01" + bytes(8),
    b"\x00\x00\x00\x00\x07",
    b"\x00\x7f\xff\xff\xff",
    b"\x01" + bytes(16),
    b"\x01",
)
_JSON = (
    *(
        b"null",
        b"true",
        b"1e999",
        b"-",
        b"{}",
        b"[]",
        b'"',
        b"\\",
        b"\n",
        b"\\ud800",
        b"NaN",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
    ),
    *(
        b":",
        b"\x00",
        b"\xef\xbb\xbf",
        b'"amount":1,',
        b"9" * 400,
        b"1" + b"0" * 30,
        b"[" * 300,
        b'{"a":' * 300,
        b"\r\n",
    ),
)
_MOST_BYTES = 8
_EDGE_BYTES = 3
# The longest frame there is.
_START_BYTES = 17


def damaged(entropy: Entropy, value: bytes | None, others: Sequence[bytes | None]) -> bytes | None:
    """`value` after one to three accidents; `others` are values it may be mixed up with."""
    for _ in range(entropy.number(1, 3)):
        whole = value or b""
        place = _place(entropy, len(whole))
        value = pick(entropy, _ACCIDENTS)(entropy, whole, place, pick(entropy, others) or b"")
    return value


def _place(entropy: Entropy, size: int) -> int:
    """Anywhere, but more often where frames and lengths stand, and where the last value ends."""
    match entropy.number(0, 3):
        case 0:
            return size - entropy.number(0, min(_EDGE_BYTES, size))
        case 1:
            return entropy.number(0, min(_START_BYTES, size))
        case _:
            return entropy.number(0, size)


def _flip(entropy: Entropy, whole: bytes, place: int, _: bytes) -> bytes:
    """One bit."""
    if place == len(whole):
        return whole
    return whole[:place] + bytes([whole[place] ^ 1 << entropy.number(0, 7)]) + whole[place + 1 :]


def _put(entropy: Entropy, whole: bytes, place: int, some: bytes) -> bytes:
    """In the place of what is there, or between."""
    over = len(some) if entropy.number(0, 1) else 0
    return whole[:place] + some + whole[place + over :]


# Each is given the value, a place in it and another value.
_ACCIDENTS: Sequence[Callable[[Entropy, bytes, int, bytes], bytes | None]] = (
    lambda entropy, whole, place, other: None,
    lambda entropy, whole, place, other: b"",
    lambda entropy, whole, place, other: whole[:place],
    lambda entropy, whole, place, other: whole[place:],
    lambda entropy, whole, place, other: whole[:place] + whole[place + 1 :],
    lambda entropy, whole, place, other: whole + pick(entropy, [b"\x00", b"\n", b" ", b"}", other]),
    lambda entropy, whole, place, other: pick(entropy, _FRAMES) + whole[place:],
    lambda entropy, whole, place, other: whole[:place] + other[entropy.number(0, len(other)) :],
    lambda entropy, whole, place, other: whole[: entropy.number(place, len(whole))] + whole[place:],
    lambda entropy, whole, place, other: _put(entropy, whole, place, pick(entropy, _NUMBERS)),
    lambda entropy, whole, place, other: _put(entropy, whole, place, pick(entropy, _NUMBERS)),
    lambda entropy, whole, place, other: _put(entropy, whole, place, pick(entropy, _JSON)),
    lambda entropy, whole, place, other: _put(entropy, whole, place, entropy.octets(entropy.number(1, _MOST_BYTES))),
    _flip,
    _flip,
)
