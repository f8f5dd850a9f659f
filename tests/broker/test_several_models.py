"""Several models on one stream, on a real broker: each is judged as if it were alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer

from modelcast.consumer.reports import Started, Stopped, Waiting
from tests.brokers import Broker
from tests.faults import oracle
from tests.publishing import Shell
from tests.unit.control_rig import wait_until
from tests.unit.linear_model import linear_model

from .test_scorer import Running, Stream

TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


@pytest.fixture
def stream(broker: Broker, prefix: str, tmp_path: Path) -> Stream:
    return Stream(broker, prefix, tmp_path)


def publish(stream: Stream, model: str, bias: float, *, release: bool = True) -> None:
    prepared = linear_model(stream.folder / f"{model}-{bias}", bias)
    stream.writer.publish(model, prepared, release=release)


def send(stream: Stream, values: list[Mapping[str, Any] | bytes]) -> None:
    producer = Producer({"bootstrap.servers": stream.servers})
    for number, value in enumerate(values):
        octets = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = [TRACE, ("other", b"x")] if number % 2 else None
        producer.produce(stream.events, octets, str(number), number // 2 % stream.partitions, headers=headers)
    assert producer.flush(60) == 0


def outcome(stream: Stream, topic: str, dead_letters: str) -> oracle.Verdict:
    schemas = stream.connection.topics.schemas
    return oracle.judge(
        stream.servers, events=stream.events, predictions=topic, dead_letters=dead_letters, schemas=schemas
    )


def decoded(stream: Stream, topic: str) -> list[tuple[Message, Mapping[str, Any]]]:
    known = oracle.writer_schemas(stream.servers, stream.connection.topics.schemas)
    return [(message, oracle.decode(message.value(), known)) for message in oracle.read(stream.servers, topic)]


def test_each_model_scores_every_event_and_what_is_wrong_is_told_once(stream: Stream) -> None:
    publish(stream, "fraud", 0.5)
    publish(stream, "churn", 100.0, release=False)
    values: list[Mapping[str, Any] | bytes] = [{"amount": number, "age": 1} for number in range(4_000)]
    values[1_001] = b"garbage"
    send(stream, values)
    stream.predictions = "{model}-" + stream.events
    scorer, reports = stream.scorer(model=["fraud", "churn"], carry_headers=["traceparent"])
    with Running(scorer) as running:
        wait_until(
            lambda: any("'churn' has no release" in report.reason for report in reports if isinstance(report, Waiting)),
            "the model without a release is named",
        )
        topics = [f"{model}-{stream.events}" for model in ("fraud", "churn")]
        assert not oracle.read(stream.servers, topics[0]), "all events wait for all models"
        stream.writer.release("churn", 1)
        wait_until(lambda: scorer.stats.events == len(values), "all events are scored")
    assert running.error is None
    for topic, model, bias in zip(topics, ("fraud", "churn"), (0.5, 100.0), strict=True):
        assert outcome(stream, topic, f"{stream.events}.dead-letters").is_whole
        for message, prediction in decoded(stream, topic):
            number = int(message.key())
            assert (prediction["model"], prediction["score"]) == (model, number + 1 + bias)
            assert message.headers() == ([TRACE] if number % 2 else None)
    (letter,) = oracle.read(stream.servers, f"{stream.events}.dead-letters")
    assert dict(letter.headers())["modelcast.model"] == b"fraud,churn"
    assert TRACE in letter.headers()
    started, stopped = reports[0], reports[-1]
    assert isinstance(started, Started)
    assert started.topics == dict(zip(("fraud", "churn"), topics, strict=True))
    assert isinstance(stopped, Stopped)
    assert [(entry.model, entry.predictions, entry.dead_letters) for entry in stopped.stats.models] == [
        ("fraud", 3_999, 1), ("churn", 3_999, 1),
    ]  # fmt: skip


def test_a_field_of_the_event_says_which_model_scores_it(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))
    publish(stream, "fraud-de", 0.0)
    publish(stream, "fraud-us", 100.0)
    countries = ["DE", "US", "AT", "FR"]
    send(stream, [{"country": countries[n % 4], "amount": n, "age": 0} for n in range(2_000)])
    shell = Shell(stream.servers, stream.connection.prefix)
    lines = shell.run(
        "score", "--events", stream.events, "--predictions", stream.predictions, "--until-end", "--json",
        "--route", "country", "--routes", "DE=fraud-de,AT=fraud-de", "--routes", "US=fraud-us@1",
    )  # fmt: skip
    assert lines.returncode == 0, lines.stderr
    first, *_, last = map(json.loads, lines.stdout.splitlines())
    assert first["route"] == "country"
    assert first["topics"] == {"fraud-de": stream.predictions, "fraud-us@1": stream.predictions}
    assert last["models"] == {
        "fraud-de": {"live": 1, "predictions": 1_000, "dead_letters": 0},
        "fraud-us@1": {"live": 1, "predictions": 500, "dead_letters": 0},
    }
    assert (last["predictions"], last["dead_letters"], last["left"]) == (1_500, 500, 0)
    verdict = outcome(stream, stream.predictions, f"{stream.predictions}.dead-letters")
    assert verdict.is_whole, "also in the order of the events"
    for message, prediction in decoded(stream, stream.predictions):
        number = int(message.key())
        wanted = ("fraud-us", number + 100.0) if countries[number % 4] == "US" else ("fraud-de", float(number))
        assert (prediction["model"], prediction["score"]) == wanted
    letters = oracle.read(stream.servers, f"{stream.predictions}.dead-letters")
    assert {dict(letter.headers())["__streams.errors.exception"] for letter in letters} == {b"NoRoute"}
