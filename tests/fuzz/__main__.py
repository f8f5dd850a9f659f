"""The whole run: `python -m tests.fuzz --cases 1000000`, or one case again: `--only READER --seed S --case N`.

- 12 cases of 100 are batches of damaged events, each with several of them; the others go to the readers of all else.
- Of the batches, half are drawn by dice and half led by the code they reach (atheris). Of the others, 5 in 100 are
  drawn by Hypothesis, 15 are led by the code they reach, the rest are drawn by dice.
- Each engine has processes of its own. The first finding ends the run: it is told, with how to play it again.
- At the end: a table of what was judged, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from . import corpora
from .catalogue import named, readers
from .entropy import Dice
from .events import again
from .harness import Player
from .reader import Judge

EVENTS_SHARE = 0.12
GUIDED_EVENTS_SHARE = 0.5
HYPOTHESIS_SHARE = 0.05
GUIDED_SHARE = 0.15
# What libFuzzer says at the end.
_DONE = re.compile(r"Done (\d+) runs")
_GUIDED_OPTIONS = ("-len_control=0", "-timeout=120", "-rss_limit_mb=4096", "-print_final_stats=0")
# The longest input of each: events are told by a tape, readers read the input itself.
_MAX_LEN = {"events": 200, "readers": 4096}
_SHOWN_LINES = 40


def main() -> int:
    """0 if nothing was found, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="how many are judged in all")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, beside the two that are guided")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--unguided", action="store_true", help="without atheris, which few platforms have")
    parser.add_argument("--only", help="with --case or --input: the reader, or 'events'")
    parser.add_argument("--case", type=int, default=None, help="with --only and --seed: that case again")
    parser.add_argument("--input", type=Path, default=None, help="what the guided fuzzer found in a reader")
    parser.add_argument("--tape", type=Path, default=None, help="what the guided fuzzer found in events")
    asked = parser.parse_args()
    if asked.tape is not None:
        Player().play(asked.tape.read_bytes())
    elif asked.input is not None:
        data = asked.input.read_bytes()
        reader = named(asked.only) if asked.only else readers()[data[0] % len(readers())]
        print(f"{reader.name}: {'taken' if Judge(reader).judge(data if asked.only else data[1:]) else 'refused'}")
    elif asked.case is not None:
        if asked.only == "events":
            again(asked.seed, asked.case)
        else:
            Judge(named(asked.only)).judge(named(asked.only).drawn(Dice(f"{asked.seed}/{asked.case}")))
    else:
        seed = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
        print(f"seed {seed}", file=sys.stderr, flush=True)
        return _Run(asked.cases, asked.jobs, seed, guided=not asked.unguided).run()
    return 0


class _Run:
    """One whole run."""

    def __init__(self, cases: int, jobs: int, seed: int, *, guided: bool) -> None:
        events = round(cases * EVENTS_SHARE)
        others = cases - events
        self._guided = {"events": 0, "readers": 0}
        if guided:
            self._guided = {"events": round(events * GUIDED_EVENTS_SHARE), "readers": round(others * GUIDED_SHARE)}
        hypothesis = round(others * HYPOTHESIS_SHARE)
        dice = others - hypothesis - self._guided["readers"]
        self._shards = [
            [
                *("--seed", str(seed + number * cases)),
                *("--events", str(-(-(events - self._guided["events"]) // jobs))),
                *("--dice", str(-(-dice // jobs))),
                *("--hypothesis", str(-(-hypothesis // jobs))),
            ]
            for number in range(jobs)
        ]
        self._seed = seed
        self._lock = threading.Lock()
        self._judged: Counter[tuple[str, str]] = Counter()
        self._damaged = 0
        self._found: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def run(self) -> int:
        """0 if nothing was found, else 1."""
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="modelcast-fuzz-") as folder:
            threads = [threading.Thread(target=self._shard, args=(words,)) for words in self._shards]
            threads += [
                threading.Thread(target=self._guide, args=(what, runs, Path(folder)))
                for what, runs in self._guided.items()
                if runs
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for text in self._found:
            print(text, file=sys.stderr)
        self._tell_table()
        told = {"cases": self._judged.total(), "findings": len(self._found), "seed": self._seed}
        by_engine = Counter[str]()
        for (engine, _), cases in self._judged.items():
            by_engine[engine] += cases
        told |= {"by_engine": dict(by_engine), "damaged_events_by_dice": self._damaged, "readers": len(readers()) + 1}
        print(json.dumps({**told, "seconds": round(time.monotonic() - began_s, 1)}))
        return 1 if self._found else 0

    def _shard(self, words: list[str]) -> None:
        process = self._start([sys.executable, "-m", "tests.fuzz.shard", *words], stderr=subprocess.PIPE)
        errors: list[str] = []
        assert process.stderr is not None
        watcher = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        watcher.start()
        for line in process.stdout or ():
            told = json.loads(line)
            with self._lock:
                self._judged[told["engine"], told["reader"]] += told["cases"]
                self._damaged += told.get("damaged_events", 0)
                print(f"{self._judged.total():>9,} cases; {line.strip()}", file=sys.stderr, flush=True)
        watcher.join()
        if process.wait() != 0:
            self._report("".join(errors[-_SHOWN_LINES:]))

    def _guide(self, what: str, runs: int, folder: Path) -> None:
        found, kept = Path(".fuzz") / what, folder / what
        found.mkdir(parents=True, exist_ok=True)
        corpora.lay_out(what, kept)
        words = [str(found), str(kept), f"-runs={runs}", f"-max_len={_MAX_LEN[what]}", f"-seed={self._seed % 2**32}"]
        artefacts = f"-artifact_prefix=.fuzz/found-{what}-"
        process = self._start(
            [sys.executable, "-m", "tests.fuzz.guided", what, *words, artefacts, *_GUIDED_OPTIONS],
            stderr=subprocess.STDOUT,
        )
        lines: list[str] = []
        for line in process.stdout or ():
            lines = [*lines[1 - _SHOWN_LINES :], line]
        done = next((match for line in lines if (match := _DONE.search(line))), None)
        if process.wait() != 0 or done is None:
            self._report("".join(lines))
            return
        with self._lock:
            self._judged["guided", what] += int(done[1])
            print(f"{self._judged.total():>9,} cases; guided {what}: {done[1]}", file=sys.stderr, flush=True)

    def _start(self, words: list[str], *, stderr: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace")
        with self._lock:
            self._processes.append(process)
        return process

    def _report(self, text: str) -> None:
        """The first finding ends all others' work."""
        with self._lock:
            if self._found:
                return
            self._found.append(text)
            for process in self._processes:
                if process.poll() is None:
                    process.kill()

    def _tell_table(self) -> None:
        columns = ("dice", "hypothesis", "guided")
        print(f"{'reader':30}" + "".join(f"{engine:>12}" for engine in columns))
        for name in dict.fromkeys(name for _, name in self._judged):
            print(f"{name:30}" + "".join(f"{self._judged[engine, name] or '':>12}" for engine in columns))


if __name__ == "__main__":
    sys.exit(main())
