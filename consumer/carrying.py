"""Headers that go along from an event to its predictions: trace context, for most.

Dead letters hold all headers of their event in any case. The client library's batch call takes no headers, so records
that have some are handed over one by one (`commit`): only those of a batch and partition in which an event has one.

    carrier = Carrier(["traceparent", "tracestate"])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelcast.errors import UsageError

from .batches import EventBatch

Headers = Sequence[tuple[str, bytes | None]]


def header_names(text: str) -> list[str]:
    """`NAME[,NAME…]` as names. Raises UsageError: it holds none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{text!r} names no header", hint="Write e.g. --carry-headers traceparent,tracestate")
    return names


class Carrier:
    """Picks headers by their names; a name that occurs twice in an event is carried twice.

    Raises:
        UsageError: The names are one text: its letters would be names.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        if isinstance(names, str):
            raise UsageError(f"carry_headers={names!r} is one text", hint=f"Give a list: carry_headers=[{names!r}]")
        self._names = frozenset(names)

    def of(self, batch: EventBatch) -> list[Headers] | None:
        """What goes along from each event; None if nothing does from any."""
        if not self._names:
            return None
        found = [() if own is None else self._picked(own) for own in batch.headers()]
        return found if any(found) else None

    def _picked(self, headers: Headers) -> Headers:
        return [entry for entry in headers if entry[0] in self._names]
