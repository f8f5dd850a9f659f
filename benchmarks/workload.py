"""What the streaming benchmarks score: 30-float Avro events and a logistic regression on them, both made here."""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression

from modelcast.avro import Schema
from modelcast.config import Connection
from modelcast.events.infer import infer_schema_of
from modelcast.events.send import EventSender
from modelcast.log import Log
from modelcast.publisher import ModelPublisher
from modelcast.topics import Topics

FEATURES = tuple(f"v{number}" for number in range(30))
MODEL = "fraud"

_SEED = 20_130_101
_SLICE_ROWS = 100_000
_TRAINING_ROWS = 20_000


def events(count: int, *, seed: int = _SEED) -> pl.DataFrame:
    """`count` events: a string `id` and thirty float32 features."""
    values = np.random.default_rng(seed).standard_normal((count, len(FEATURES)), dtype=np.float32)
    return pl.DataFrame(
        {
            "id": [f"{number:012d}" for number in range(count)],
            **{name: values[:, column] for column, name in enumerate(FEATURES)},
        }
    )


def publish_model(connection: Connection) -> None:
    """Trains a logistic regression and releases it as `fraud`."""
    frame = events(_TRAINING_ROWS)
    features = frame.select(FEATURES).to_numpy()
    weights = np.random.default_rng(_SEED).standard_normal(len(FEATURES))
    model = LogisticRegression().fit(features, features @ weights > 0)
    with ModelPublisher.connect(connection) as publisher:
        publisher.publish(MODEL, model, examples=frame.head(50), fields=FEATURES, release=True)


def send(log: Log, topics: Topics, topic: str, count: int, *, partitions: int) -> Schema:
    """Sends `count` events to a new topic and returns their schema."""
    schema = infer_schema_of(topic, events(1))
    with EventSender(log, topics, topic, schema=schema, key="id", partitions=partitions) as sender:
        for start in range(0, count, _SLICE_ROWS):
            sender.send(events(min(_SLICE_ROWS, count - start), seed=_SEED + start))
        sender.flush()
    return schema
