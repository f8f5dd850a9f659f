"""One process's share of a run: `python -m tests.fuzz.shard --seed S --events N --dice N --hypothesis N`.

Prints a line of JSON for each reader and engine it is done with: `{"engine", "reader", "cases", "taken", …}`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable

from . import engines, events
from .catalogue import readers
from .reader import Judge, Reader

# Of the address space, most of it libraries' code: a size that is believed ends the case, not the machine.
MEMORY_LIMIT_BYTES = 8 << 30


def main() -> int:
    """0 if nothing was found; else what was found is raised."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("seed", "events", "dice", "hypothesis"):
        parser.add_argument(f"--{name}", type=int, default=0)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    shares = shared(asked.dice), shared(asked.hypothesis)
    for reader in readers():
        _run("dice", engines.by_dice, reader, shares[0][reader.name], asked.seed)
        _run("hypothesis", engines.by_hypothesis, reader, shares[1][reader.name], asked.seed)
    if asked.events:
        began_s = time.process_time()
        broken = events.by_dice(asked.events, asked.seed)
        told = {"engine": "dice", "reader": "events", "cases": asked.events, "damaged_events": broken}
        _tell({**told, "cpu_s": round(time.process_time() - began_s, 1)})
    return 0


def shared(cases: int) -> dict[str, int]:
    """How many of so many cases each reader gets, by its share; at least as many in all."""
    whole = sum(reader.share for reader in readers())
    return {reader.name: -(-cases * reader.share // whole) for reader in readers()}


def _run(engine: str, run: Callable[[Reader, int, int], Judge], reader: Reader, cases: int, seed: int) -> None:
    if not cases:
        return
    began_s = time.process_time()
    judge = run(reader, cases, seed)
    told = {"engine": engine, "reader": reader.name, "cases": judge.judged, "taken": judge.taken}
    _tell({**told, "cpu_s": round(time.process_time() - began_s, 1)})


def _tell(told: dict[str, object]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
