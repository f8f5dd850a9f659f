"""`python -m tests.soak --minutes N --seed S [--report FILE]`; exits with 1 where a promise was broken."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.cluster import Cluster

from .soak import Soak
from .stage import Stage
from .timeline import Timeline


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of rounds, calms included (default: 5)")
    parser.add_argument("--seed", type=int, help="of what is broken when; drawn and printed by default")
    parser.add_argument("--report", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--folder", type=Path, help="for data and logs; by default a new one, kept if the run fails")
    parser.add_argument("--events-per-s", type=float, default=200.0, help="the usual rate of events (default: 200)")
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between two faults (default: 5)")
    parser.add_argument("--scorers", type=int, default=2, help="processes in each of the two groups (default: 2)")
    parser.add_argument("--patience", type=float, default=1.0, help="what deadlines are multiplied by (default: 1)")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    timeline = Timeline(folder / "timeline.jsonl")
    print(f"seed {seed}, {asked.minutes:g} minutes, logs in {folder}", flush=True)
    report: dict[str, Any] = {
        "seed": seed,
        "minutes": asked.minutes,
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": f"make soak MINUTES={asked.minutes:g} SEED={seed}",
    }
    soak: Soak | None = None
    failure = ""
    try:
        with Cluster(folder / "cluster") as cluster:
            stage = Stage(cluster, folder, timeline, asked.patience)
            soak = Soak(
                stage,
                seed=seed,
                minutes=asked.minutes,
                per_second=asked.events_per_s,
                act_every_s=asked.every,
                scorers=asked.scorers,
            )
            soak.run()
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"
        timeline.note("failed", why=failure)
        print("\n".join(timeline.latest()), flush=True)
        traceback.print_exc()
    report |= {"failure": failure, "seconds": round(timeline.elapsed_s)}
    if soak is not None and soak.has_begun:
        report |= soak.figures()
    timeline.close()
    text = json.dumps(report, indent=2)
    print(text, flush=True)
    if asked.report is not None:
        asked.report.write_text(text + "\n")
    if failure:
        print(f"failed: {failure}\nseed {seed}; timeline {timeline.path}; logs in {folder}", flush=True)
        return 1
    if asked.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Threads of clients that wait for nodes which are gone would hold up an ordinary end.
    os._exit(status)
