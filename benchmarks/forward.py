"""What modelcast's latency is measured against: events passed on as they come, by the plain client at its quickest.

    python -m benchmarks.forward --bootstrap-servers HOST:PORT --source TOPIC --target TOPIC

One event is taken and sent on, without decoding or model, until the process is told to end.
"""

from __future__ import annotations

import argparse
import signal
from types import FrameType

from confluent_kafka import Consumer, Producer

_POLL_S = 0.1


def forward(bootstrap_servers: str, source: str, target: str) -> None:
    """Passes events on from `source` to the same partition of `target`, until SIGTERM."""
    ended = False

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"forward-{target}",
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 5,
        }
    )
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "linger.ms": 0, "socket.nagle.disable": True, "acks": "all"}
    )
    consumer.subscribe([source])
    while not ended:
        message = consumer.poll(_POLL_S)
        if message is None or message.error():
            continue
        producer.produce(target, message.value(), message.key(), partition=message.partition() or 0)
        producer.poll(0)
    producer.flush()
    consumer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--bootstrap-servers", "--source", "--target"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    forward(arguments.bootstrap_servers, arguments.source, arguments.target)


if __name__ == "__main__":
    main()
