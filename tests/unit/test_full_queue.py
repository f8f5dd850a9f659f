"""A producer whose queue is full: waited for, but not for ever by a record that no queue of its size holds."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from modelcast.errors import ConfigError
from modelcast.kafka import batch
from modelcast.kafka.batch import KafkaBatchProducer
from modelcast.kafka.faults import Faults

NOBODY = "127.0.0.1:1"
QUEUE_KB = 1024


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> KafkaBatchProducer:
    # Nobody has to be there: records only get as far as the queue.
    monkeypatch.setattr(batch, "make_producer", lambda settings, _: Producer({**settings, "log_level": 0}))
    settings = {"bootstrap.servers": NOBODY, "queue.buffering.max.kbytes": str(QUEUE_KB)}
    return KafkaBatchProducer(settings, Faults(NOBODY))


def test_f43_a_record_larger_than_the_queue_is_refused_not_waited_for(producer: KafkaBatchProducer) -> None:
    with pytest.raises(ConfigError, match=r"2,000,000 bytes does not fit.*--max-memory"):
        producer.produce("letters", key=None, value=b"x" * 2_000_000, partition=0)
    with pytest.raises(ConfigError, match="does not fit"):
        producer.produce_batch("scores", 0, [{"key": None, "value": b"x" * 2_000_000}])
    producer.close()


def test_a_record_that_fits_is_taken(producer: KafkaBatchProducer) -> None:
    producer.produce("letters", key=b"k", value=b"x" * 900_000, partition=0)
    producer.close()
