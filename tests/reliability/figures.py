"""How a test tells what it found, so that docs/RELIABILITY.md can say it: lines of its standard output.

    figure("published 3.1 s after the broker was killed")
    counted(events=60_000, lost=0, doubled=0)

Counts of one name are summed over the tests of a row; a figure stands as it is. Where the output goes elsewhere, to
a terminal or a `capsys` of the test's own, nothing is recorded, and nothing else happens.
"""

from __future__ import annotations

from typing import Final

FIGURE: Final = "figure: "
COUNTED: Final = "counted: "


def figure(text: str) -> None:
    """Tells one finding, in a few words with their number."""
    print(f"{FIGURE}{text}")


def counted(**counts: int) -> None:
    """Tells counts that may be summed; `out_of_order=0` is shown as "0 out of order"."""
    print(COUNTED + " ".join(f"{name}={count}" for name, count in counts.items()))
