"""Dead letters for people: what format a value seems to be in, how it begins, and when a letter was written."""

from __future__ import annotations

from datetime import UTC, datetime

from modelcast.avro import SINGLE_OBJECT_MARKER

# A Schema Registry's frame: a zero byte and an id of four.
_REGISTRY_MAGIC = b"\x00"
_REGISTRY_FRAME_BYTES = 5
_SPACE = b" \t\r\n"
_LONGEST_CHARACTER_BYTES = 4  # of UTF-8
# So much of a value says whether it is text.
_JUDGED_BYTES = 1024


def format_of(value: bytes | None) -> str:
    """`none`, `empty`, `avro`, `confluent`, `json`, `text` or `bytes`: by how a value begins, for it may be broken."""
    if value is None:
        return "none"
    if not value:
        return "empty"
    if value.startswith(SINGLE_OBJECT_MARKER):
        return "avro"
    if value.startswith(_REGISTRY_MAGIC) and len(value) >= _REGISTRY_FRAME_BYTES:
        return "confluent"
    if value.lstrip(_SPACE)[:1] in (b"{", b"["):
        return "json"
    return "text" if _as_text(value, _JUDGED_BYTES) is not None else "bytes"


def preview(value: bytes | None, max_chars: int) -> str:
    """The beginning of a value on one line: text where it is text, else hexadecimal; "" for none."""
    if not value:
        return ""
    text = _as_text(value, max_chars * _LONGEST_CHARACTER_BYTES)
    shown = " ".join(text.split()) if text is not None else value[: max_chars // 2].hex()
    whole = len(value) <= (max_chars * _LONGEST_CHARACTER_BYTES if text is not None else max_chars // 2)
    return shown if whole and len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def moment(epoch_ms: int) -> str:
    """A time to the second, UTC; the number where there is no such date."""
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return str(epoch_ms)


def _as_text(value: bytes, max_bytes: int) -> str | None:
    """The text that the first bytes are, if they are one; a character at the cut is left out."""
    some = value[:max_bytes]
    for less in range(_LONGEST_CHARACTER_BYTES if len(value) > max_bytes else 1):
        try:
            text = some[: len(some) - less].decode()
        except UnicodeDecodeError:
            continue
        return text if all(c.isprintable() or c in "\t\r\n" for c in text) else None
    return None
