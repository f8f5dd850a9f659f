"""The log and the data plane on Apache Kafka: the only package that imports `confluent_kafka`.

    with KafkaLog({"bootstrap.servers": "localhost:9092"}) as log:
        log.topics()

Settings are librdkafka's own dotted names. What the caller gives wins over every default of `settings.py`, except for
the few that a promise rests on (acks, idempotence, isolation, no automatic commits).

librdkafka's log lines go to the Python logger `modelcast.kafka`, never to stderr by themselves.
"""

from __future__ import annotations

from .batch import KafkaBatchProducer, KafkaTransactionalBatchProducer
from .client import KafkaLog
from .group import KafkaGroupConsumer
from .progress import KafkaGroupProgress
from .reader import KafkaReader
from .writer import KafkaTransactionalWriter, KafkaWriter

__all__ = [
    "KafkaBatchProducer",
    "KafkaGroupConsumer",
    "KafkaGroupProgress",
    "KafkaLog",
    "KafkaReader",
    "KafkaTransactionalBatchProducer",
    "KafkaTransactionalWriter",
    "KafkaWriter",
]
