"""`Scorer` on a real broker, in process: what it makes, waits for, and ends at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from modelcast.config import Connection
from modelcast.consumer import Scorer
from modelcast.consumer import scorer as scorer_module
from modelcast.consumer.reports import Refused, Report, Started, Stopped, Swapped, Waiting, Warned, WentLive
from modelcast.errors import (
    BindingError,
    BrokerError,
    ExitCode,
    LoadError,
    ModelNotFoundError,
    OffsetOutOfRangeError,
    RepositoryNotFoundError,
    TopicNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from modelcast.log import TopicSpec
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.faults import oracle
from tests.unit.control_rig import wait_until
from tests.unit.linear_model import linear_model

LONGEST_S = 120.0


class Stream:
    """A repository, a topic of events, and scorers on threads."""

    def __init__(self, broker: Broker, prefix: str, folder: Path, *, partitions: int = 2) -> None:
        self.servers = broker.bootstrap_servers
        self.connection = Connection.resolve(self.servers, prefix=prefix)
        self.folder = folder
        self.log = self.connection.open_log()
        init(self.log, self.connection.topics, blob_partitions=2)
        self.writer = RegistryWriter(self.log, self.connection.topics)
        self.events, self.predictions = f"{prefix}-events", f"{prefix}-scores"
        self.log.create(TopicSpec(self.events, partitions))
        self.partitions = partitions
        self.models = 0

    def publish(self, bias: float, *, release: bool = True) -> int:
        self.models += 1
        prepared = linear_model(self.folder / f"source-{self.models}", bias)
        return self.writer.publish("fraud", prepared, release=release).manifest.version

    def send(self, count: int, *, transactional: bool = False, value: bytes | None = None) -> None:
        settings = {"bootstrap.servers": self.servers}
        producer = Producer({**settings, "transactional.id": f"{self.events}-feeder"} if transactional else settings)
        if transactional:
            producer.init_transactions()
            producer.begin_transaction()
        for number in range(count):
            event = b'{"amount": %d, "age": 1}' % number if value is None else value
            producer.produce(self.events, value=event, key=b"%d" % number, partition=number % self.partitions)
        if transactional:
            producer.commit_transaction()
        assert producer.flush(60) == 0

    def scorer(self, **options: object) -> tuple[Scorer, list[Report]]:
        reports: list[Report] = []
        scorer = Scorer(
            options.pop("model", "fraud"),
            self.events,
            self.predictions,
            connection=self.connection,
            cache_dir=self.folder / "cache",
            state_dir=self.folder / "state",
            report=reports.append,
            **options,  # type: ignore[arg-type]
        )
        return scorer, reports

    def judge(self) -> oracle.Verdict:
        return oracle.judge(
            self.servers,
            events=self.events,
            predictions=self.predictions,
            dead_letters=f"{self.predictions}.dead-letters",
            schemas=self.connection.topics.schemas,
        )

    def lag(self) -> int:
        group = f"{self.connection.prefix}.fraud.{self.predictions}"
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group})
        asked = [TopicPartition(self.events, partition) for partition in range(self.partitions)]
        committed = {found.partition: max(found.offset, 0) for found in consumer.committed(asked, LONGEST_S)}
        consumer.close()
        ends = self.log.end_offsets(self.events, committed=False)
        return sum(end - committed[partition] for partition, end in ends.items())


class Running:
    """A scorer on a thread; stopped at the end."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.scorer.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(LONGEST_S)
        assert not self._thread.is_alive(), "the scorer did not end"

    def _run(self) -> None:
        try:
            self.scorer.run()
        except BaseException as error:
            self.error = error


@pytest.fixture
def stream(broker: Broker, prefix: str, tmp_path: Path) -> Stream:
    return Stream(broker, prefix, tmp_path)


def heard(reports: list[Report], kind: type) -> Callable[[], bool]:
    return lambda: any(isinstance(report, kind) for report in reports)


@pytest.mark.parametrize("guarantee", ["exactly-once", "at-least-once"])
def test_until_end_scores_what_is_there_and_leaves_no_lag(stream: Stream, guarantee: str) -> None:
    stream.publish(0.5)
    stream.send(5_000)
    scorer, reports = stream.scorer(until_end=True, guarantee=guarantee)
    stats = scorer.run()
    assert (stats.events, stats.predictions, stats.dead_letters) == (5_000, 5_000, 0)
    assert stream.judge().is_whole
    assert stream.lag() == 0
    started, stopped = reports[0], reports[-1]
    assert isinstance(started, Started)
    assert (started.guarantee, started.partitions) == (guarantee, 2)
    assert isinstance(stopped, Stopped)
    assert stopped.left == {}


def test_transaction_markers_at_the_end_are_passed(stream: Stream) -> None:
    stream.publish(0.5)
    stream.send(11, transactional=True)
    scorer, _ = stream.scorer(until_end=True)
    assert scorer.run().events == 11
    assert stream.lag() == 0


def test_scorers_of_a_group_end_together(stream: Stream) -> None:
    stream.publish(0.5)
    stream.send(20_000)
    scorers = [stream.scorer(until_end=True)[0] for _ in range(3)]  # one more than there are partitions
    with Running(scorers[0]) as a, Running(scorers[1]) as b, Running(scorers[2]) as c:
        for running in (a, b, c):
            running.join()
            assert running.error is None
    assert sum(scorer.stats.events for scorer in scorers) == 20_000
    assert stream.judge().is_whole


def test_events_wait_for_a_first_release_and_a_second_one_swaps_without_a_stop(stream: Stream) -> None:
    stream.send(10)
    stream.publish(0.5, release=False)
    scorer, reports = stream.scorer()
    with Running(scorer) as running:
        wait_until(
            lambda: any("has no release" in report.reason for report in reports if isinstance(report, Waiting)),
            "the scorer to say what it waits for",
        )
        stream.publish(1.5)
        wait_until(heard(reports, WentLive), "a version to go live")
        wait_until(lambda: scorer.stats.events == 10, "the events that waited")
        stream.publish(2.5)
        wait_until(heard(reports, Swapped), "the swap")
        stream.send(10)
        wait_until(lambda: scorer.stats.events == 20, "the events after the swap")
    assert running.error is None
    known = oracle.writer_schemas(stream.servers, stream.connection.topics.schemas)
    versions = [oracle.decode(m.value(), known)["version"] for m in oracle.read(stream.servers, stream.predictions)]
    assert sorted(versions) == [2] * 10 + [3] * 10
    assert stream.judge().is_whole


def test_a_version_the_first_events_can_not_feed_is_refused_though_the_topic_was_empty(stream: Stream) -> None:
    stream.publish(0.5, release=False)
    scorer, reports = stream.scorer()
    with Running(scorer):
        wait_until(heard(reports, Waiting), "the scorer to wait")
        stream.send(2, value=b'{"amount": "many", "age": 1}')
        wait_until(lambda: scorer._observer is not None and scorer._observer._fields.known, "a look at the events")
        stream.writer.release("fraud", 1)
        wait_until(heard(reports, Refused), "the refusal")
    (refused,) = [report for report in reports if isinstance(report, Refused)]
    assert refused.reason == BindingError.reason
    assert "'amount'" in refused.message
    assert stream.lag() == 2, "nothing was dropped into the dead letters"


def test_until_end_with_a_model_that_can_not_go_live_says_so(stream: Stream) -> None:
    stream.send(1, value=b'{"weight": 1}')
    stream.publish(0.5)
    scorer, _ = stream.scorer(until_end=True)
    with pytest.raises(LoadError, match="'amount'") as raised:
        scorer.run()
    assert raised.value.exit_code is ExitCode.MODEL_REFUSED


def test_until_end_with_a_model_nobody_published_says_so(stream: Stream) -> None:
    scorer, _ = stream.scorer(until_end=True, model="nobody")
    with pytest.raises(ModelNotFoundError, match="nobody"):
        scorer.run()
    assert stream.predictions not in stream.log.topics()


def test_a_model_nobody_publishes_is_waited_for_a_while_and_then_not_found(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "UNKNOWN_MODEL_PATIENCE_S", 0.3)
    scorer, reports = stream.scorer(model="nobody")
    with pytest.raises(ModelNotFoundError, match="nobody"):
        scorer.run()
    assert any("nobody published 'nobody' yet" in str(report) for report in reports)
    assert stream.predictions not in stream.log.topics()


def test_a_version_that_was_never_published_is_not_waited_for_and_nothing_is_made(stream: Stream) -> None:
    stream.publish(0.5)
    scorer, _ = stream.scorer(model="fraud@9")
    with pytest.raises(VersionNotFoundError, match="has no version 9"):
        scorer.run()
    assert stream.predictions not in stream.log.topics()


def test_a_missing_events_topic_is_refused_and_nothing_is_made(stream: Stream) -> None:
    stream.events = f"{stream.events}-misspelt"
    scorer, _ = stream.scorer()
    with pytest.raises(TopicNotFoundError, match="misspelt"):
        scorer.run()
    assert stream.predictions not in stream.log.topics()
    assert stream.events not in stream.log.topics()


def test_a_missing_repository_is_refused(broker: Broker, prefix: str, fresh_topic: Callable[..., str]) -> None:
    scorer = Scorer(
        "fraud", fresh_topic("events"), fresh_topic("scores"), prefix=prefix, bootstrap_servers=broker.bootstrap_servers
    )
    with pytest.raises(RepositoryNotFoundError, match="modelcast init"):
        scorer.run()


def test_a_topic_that_would_drop_old_predictions_is_named(stream: Stream) -> None:
    stream.publish(0.5)
    stream.log.create(TopicSpec(stream.predictions, 2, configs={"retention.ms": "604800000"}))
    scorer, reports = stream.scorer(until_end=True)
    scorer.run()
    (warned,) = [report for report in reports if isinstance(report, Warned)]
    assert stream.predictions in warned.message


def test_two_scorers_under_one_instance_on_one_host_are_refused(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcast.consumer.instance.NAMED_INSTANCE_WAIT_S", 0.1)
    stream.publish(0.5)
    first, reports = stream.scorer(instance="blue")
    with Running(first):
        wait_until(heard(reports, Started), "the first scorer")
        second, _ = stream.scorer(instance="blue")
        with pytest.raises(UsageError, match="runs as instance 'blue'"):
            second.run()


def test_f35_events_deleted_before_they_were_scored_are_an_error_not_a_gap(stream: Stream) -> None:
    from confluent_kafka.admin import AdminClient

    stream.publish(0.5)
    stream.send(100)
    scorer, _ = stream.scorer(until_end=True)
    scorer.run()
    stream.send(100)
    admin = AdminClient({"bootstrap.servers": stream.servers})
    gone = [TopicPartition(stream.events, partition, 80) for partition in range(2)]
    for future in admin.delete_records(gone).values():
        future.result()
    again, _ = stream.scorer(until_end=True)
    with pytest.raises(OffsetOutOfRangeError) as raised:
        again.run()
    assert isinstance(raised.value, BrokerError)
    assert again.stats.events == 0


def test_f42_an_open_transaction_among_the_events_is_waited_for_not_taken_for_the_end(stream: Stream) -> None:
    stream.publish(0.5)
    stream.send(10)
    lasting = {"transactional.id": f"{stream.events}-open", "transaction.timeout.ms": 600_000}
    feeder = Producer({"bootstrap.servers": stream.servers, **lasting})
    feeder.init_transactions()
    feeder.begin_transaction()
    feeder.produce(stream.events, value=b'{"amount": 1, "age": 1}', partition=0)
    feeder.flush(60)
    scorer, _ = stream.scorer(until_end=True)
    with Running(scorer) as running:
        wait_until(lambda: scorer.stats.events == 10, "the events before the open transaction")
        assert running._thread.is_alive()
        feeder.commit_transaction()
        running.join()
        assert running.error is None
    assert scorer.stats.events == 11
    assert stream.judge().is_whole
