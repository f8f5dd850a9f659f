"""What modelcast is measured against, each in a process of its own: `python -m benchmarks.sides SIDE …`.

- `pass-through`, `pass-through-transactions`: modelcast's own clients, settings and commit thread, without decoding or
  model: events are consumed in batches and written out again. The ceiling of what this client library allows.
- `naive`: the usual loop: poll one event, decode it (fastavro, or `json`), run the model on one row, produce.

Each ends when it has taken every event that was there at its start.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from modelcast.consumer.batches import EventBatch, records_by_partition
from modelcast.consumer.collector import QuietCollector
from modelcast.consumer.commit import (
    Committer,
    Destination,
    FlushingCommitter,
    ScoredBatch,
    TransactionalCommitter,
)
from modelcast.group import GroupMetadata, Message
from modelcast.kafka import KafkaLog

from .peers.one_by_one import OneByOne

BATCH_EVENTS = 20_000
_SESSION_TIMEOUT_MS = 6_000
_TRANSACTION_TIMEOUT_MS = 10_000
_FLUSH_S = 60.0
_POLL_S = 0.1


def pass_through(log: KafkaLog, source: str, target: str, *, transactions: bool) -> None:
    """Consumes batches and writes them out again on a second thread, with offsets in a transaction or after."""
    group = f"benchmark-{target}"
    left = sum(log.end_offsets(source, committed=False).values())
    consumer = log.group_consumer(group, session_timeout_ms=_SESSION_TIMEOUT_MS)
    consumer.subscribe(source, on_assign=_ignore, on_revoke=_ignore, on_lost=_ignore)
    to = Destination(source, (target,), target)
    committer: Committer
    if transactions:
        committer = TransactionalCommitter(
            to, lambda: log.transactional_batch_producer(group, timeout_ms=_TRANSACTION_TIMEOUT_MS)
        )
    else:
        committer = FlushingCommitter(to, log.batch_producer)
    committer.start()
    with QuietCollector() as collector:
        while left > 0:
            messages = consumer.consume(1, _POLL_S)
            if not messages:
                continue
            messages = [*messages, *consumer.consume(BATCH_EVENTS - 1, 0)]
            left -= len(messages)
            if not committer.submit(_batch(target, messages, consumer.group_metadata()), _FLUSH_S):
                raise SystemExit(f"a batch was not taken: {committer.error}")
            collector.between_batches()
    if not committer.drain(_FLUSH_S):
        raise SystemExit(f"the last batches were not committed: {committer.error}")
    if not transactions:
        consumer.commit(committer.take_acknowledged())
    committer.close(_FLUSH_S)
    consumer.close()


def _batch(target: str, messages: Sequence[Message], metadata: GroupMetadata) -> ScoredBatch:
    events = EventBatch.of(messages)
    records = records_by_partition(events.keys, events.values, events.partitions)
    predictions = {(target, partition): own for partition, own in records.items()}
    return ScoredBatch(0, len(events), predictions, (), events.next_offsets(), metadata)


def naive(bootstrap_servers: str, source: str, target: str, scores: OneByOne, count: int) -> None:
    """The loop most applications have, with the plain client libraries."""
    from confluent_kafka import Consumer, Producer

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"benchmark-{target}",
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 5,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    consumer.subscribe([source])
    left = count
    while left > 0:
        message = consumer.poll(_POLL_S)
        if message is None or message.error():
            continue
        left -= 1
        value = message.value()
        assert value is not None
        producer.produce(target, scores.of(value), message.key())
        producer.poll(0)
    producer.flush(_FLUSH_S)
    consumer.close()


def _ignore(_: Sequence[int]) -> None:
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["pass-through", "pass-through-transactions", "naive"])
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--plan", type=Path, required=True, help="properties: what of an event feeds which input")
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--schema", type=Path, help="of Avro events")
    given = parser.parse_args()
    if given.side == "naive":
        scores = OneByOne(given.plan, given.graph, given.schema)
        naive(given.bootstrap_servers, given.source, given.target, scores, given.count)
        return
    with KafkaLog({"bootstrap.servers": given.bootstrap_servers}) as log:
        pass_through(log, given.source, given.target, transactions=given.side == "pass-through-transactions")


if __name__ == "__main__":
    main()
