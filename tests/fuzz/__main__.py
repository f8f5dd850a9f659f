"""Damaged batches by the thousand, drawn at random: `python -m tests.fuzz --batches 100000`.

Prints the seed of each round, and of a finding all that plays it again: `--seed S --only N`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from .entropy import Dice
from .harness import Harness, Player
from .shapes import shapes

# Shapes are made anew so often: strange schemas are drawn with each.
ROUND_BATCHES = 5_000
# Of a finding's calls, the innermost: recursion has a thousand.
_SHOWN_CALLS = 12


def main() -> int:
    """0 if nothing was found, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1_000, help="how many are judged")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--only", type=int, default=None, help="only the batch of this number")
    parser.add_argument("--tape", type=Path, default=None, help="play an input of the guided fuzzer")
    asked = parser.parse_args()
    if asked.tape is not None:
        Player().play(asked.tape.read_bytes())
        return 0
    seed = random.SystemRandom().randrange(2**32) if asked.seed is None else asked.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    started, judged = time.monotonic(), Counter[str]()
    broken = 0
    while judged.total() < asked.batches:
        harnesses = [Harness(shape) for shape in shapes(seed)]
        numbers = range(min(ROUND_BATCHES, asked.batches - judged.total()))
        for number in numbers if asked.only is None else [asked.only]:
            harness = harnesses[number % len(harnesses)]
            try:
                broken += harness.judge(Dice(f"{seed}/{number}"))
            except BaseException:
                traceback.print_exc(limit=-_SHOWN_CALLS)
                print(f"found in {harness.shape.name!r}; again: --seed {seed} --only {number}", file=sys.stderr)
                return 1
            judged[harness.shape.name] += 1
        if asked.only is not None:
            break
        seed += 1
        print(f"{judged.total():,} batches, {broken:,} damaged events", file=sys.stderr, flush=True)
    told = {"batches": judged.total(), "damaged_events": broken, "shapes": len(judged)}
    print(json.dumps({**told, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
