"""An application that starts while its broker is away, as a process of its own; see test_kafka_away.py.

`python -m tests.broker.starting SERVERS PREFIX FOLDER`: says how long it took to be live, whether it knows that it is
stale, and what it predicts; then, once it is told of version 2, that it follows the registry again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import modelcast.consumer.loader  # noqa: F401 - an application has imported what it uses
from modelcast.consumer import ModelClient

LONGEST_S = 240.0


def main() -> None:
    servers, prefix, folder = sys.argv[1:]
    began_s = time.monotonic()
    with ModelClient(
        servers, models=["fraud"], prefix=prefix, cache_dir=Path(folder) / "cache", state_dir=Path(folder) / "state"
    ) as client:
        fraud = client.model("fraud").wait_live(LONGEST_S)
        took_s = time.monotonic() - began_s
        scores = fraud.predict({"amount": [1.0], "age": [10]})["score"].tolist()
        say(took_s=took_s, stale_s=client.stale_s, scores=scores, version=fraud.version)
        deadline = time.monotonic() + LONGEST_S
        while (fraud.version != 2 or client.stale_s > 0) and time.monotonic() < deadline:
            time.sleep(0.02)
        say(stale_s=client.stale_s, version=fraud.version)
        closing_s = time.monotonic()
    say(closed_s=time.monotonic() - closing_s)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
