"""Quix Streams scoring a topic's events, in its own environment: `python -m benchmarks.peers.quix_side …`.

One event at a time: rows kept back for larger batches would need a window, and its state a changelog topic. Ends after
a number of events.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import orjson
from quixstreams import Application

from .one_by_one import OneByOne


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bootstrap-servers", "source", "target"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("plan", "graph", "state"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--schema", type=Path)
    parser.add_argument("--count", type=int, required=True)
    given = parser.parse_args()
    scores = OneByOne(given.plan, given.graph, given.schema, loads=orjson.loads)
    app = Application(
        given.bootstrap_servers,
        consumer_group=f"benchmark-{given.target}",
        auto_offset_reset="earliest",
        processing_guarantee="at-least-once",
        state_dir=given.state,
        loglevel="WARNING",
        # Its own defaults wait longer for more to fetch, and hold fewer records to send.
        consumer_extra_config={"fetch.queue.backoff.ms": 5, "queued.min.messages": 200_000},
        producer_extra_config={"linger.ms": 20, "queue.buffering.max.messages": 1_000_000},
    )
    source = app.topic(given.source, value_deserializer="bytes", key_deserializer="bytes")
    target = app.topic(given.target, value_serializer="bytes", key_serializer="bytes")
    app.dataframe(source).apply(scores.of).to_topic(target)
    app.run(count=given.count, collect=False)


if __name__ == "__main__":
    main()
