"""Scorers killed, stopped and fed poison: judged from the topics by an oracle that shares no code with them."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from modelcast.avro import Schema
from modelcast.errors import ExitCode
from modelcast.events.schemas import SchemaTopic
from modelcast.kafka import KafkaLog
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.machine import Stopwatch
from tests.reliability.figures import figure

from . import oracle
from .scorer_processes import Stage, wait_for

RESTARTED_WITHIN_S = 10.0
GONE_WITHIN_S = 20.0
# Where the events of every partition begin once retention passed the scorer.
GONE = 150

EVENT = Schema.parse({
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "amount", "type": "double"},
        {"name": "age", "type": "int"},
        {"name": "note", "type": "string"},
    ],
})  # fmt: skip
OTHER = Schema.parse({"type": "record", "name": "Other", "fields": [{"name": "weight", "type": "double"}]})


@pytest.fixture
def stage(broker: Broker, prefix: str, tmp_path: Path) -> Stage:
    return Stage(broker.bootstrap_servers, prefix, tmp_path)


@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "gone"])
def test_f27_a_killed_scorer_s_partitions_are_scored_again_in_time(stage: Stage, restarted: bool) -> None:
    stage.publish(0.5)
    with (
        stage.feeding(2_000) as feeder,
        oracle.watching(stage.servers, stage.predictions, stage.schemas) as watch,
        stage.score("--instance", "a") as stays,
        stage.score("--instance", "b") as dies,
    ):
        stays.wait_line("live")
        dies.wait_line("live")
        wait_for(lambda: watch.count() > 2_000, "predictions of both")
        wait_for(lambda: stage.partitions_of("b"), "the second scorer's partitions")
        dies.kill()
        killed_at, clock = time.monotonic(), Stopwatch()
        behind = dict(feeder.next_offsets)
        if restarted:
            with stage.score("--instance", "b"):
                took_s = _recovery_s(watch, behind, killed_at)
        else:
            took_s = _recovery_s(watch, behind, killed_at)
        assert clock.allows(took_s, RESTARTED_WITHIN_S if restarted else GONE_WITHIN_S), took_s
    figure(f"all partitions scored again {took_s:.1f} s after kill -9 ({'restarted' if restarted else 'gone'})")
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def _recovery_s(watch: oracle.Watch, behind: Mapping[int, int], killed_at: float) -> float:
    def seen() -> list[float | None]:
        return [watch.first_seen(partition, from_offset=offset) for partition, offset in behind.items()]

    wait_for(lambda: all(at is not None for at in seen()), "every partition to be scored again", 120)
    return max(at for at in seen() if at is not None) - killed_at


def test_f30_a_scorer_stopped_past_its_transaction_goes_on_or_ends_and_nothing_is_doubled(stage: Stage) -> None:
    stage.publish(0.5)
    with stage.feeding(2_000), stage.score("--instance", "a") as other, stage.score("--instance", "b") as frozen:
        other.wait_line("live")
        frozen.wait_line("live")
        wait_for(lambda: stage.partitions_of("b"), "its partitions")
        frozen.process.send_signal(signal.SIGSTOP)
        time.sleep(9)  # its session of 6 s and its transaction's 6 s are over
        wait_for(lambda: len(stage.partitions_of("a")) == stage.partitions, "the other to have its partitions")
        frozen.process.send_signal(signal.SIGCONT)
        wait_for(lambda: stage.partitions_of("b") or frozen.process.poll() is not None, "it to come back or to end")
        # Fenced, it may go on with its id taken anew, or end, also while it is asked to.
        assert frozen.end() in (ExitCode.DONE, ExitCode.FENCED), frozen.last_words()
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f37_a_signal_ends_a_scorer_cleanly_in_the_middle_of_a_backlog(stage: Stage, number: signal.Signals) -> None:
    stage.publish(0.5)
    stage.send(60_000)
    with stage.score("--instance", "a") as scorer:
        scorer.wait_line("live")
        stage.await_scored()
        assert scorer.end(number) == 0, scorer.last_words()
        stopped = scorer.wait_line("stopped")
    assert stopped["events"] > 0
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def predicted(stage: Stage) -> Counter[int]:
    """How many events of each partition have a prediction."""
    known = oracle.writer_schemas(stage.servers, stage.schemas)
    records = oracle.read(stage.servers, stage.predictions)
    return Counter(oracle.source_of(oracle.decode(record.value(), known))[0] for record in records)


def test_f35_retention_that_passes_a_running_scorer_ends_it_with_the_remedy_and_skips_nothing(stage: Stage) -> None:
    stage.publish(0.5)
    stage.send(400)
    with stage.score("--instance", "a") as scorer:
        wait_for(lambda: sum(stage.committed().values()) == 400, "what is there to be scored")
        scorer.process.send_signal(signal.SIGSTOP)
        stage.send(400, start=400)
        gone = [TopicPartition(stage.events, partition, GONE) for partition in range(stage.partitions)]
        admin = AdminClient({"bootstrap.servers": stage.servers})
        for deleted in admin.delete_records(gone).values():
            deleted.result(60)
        scorer.process.send_signal(signal.SIGCONT)
        assert scorer.process.wait(120) == ExitCode.BROKER, scorer.last_words()
    assert "--reset-offsets" in scorer.last_words()
    # What its open fetch brought before the deletion may be scored, and nothing behind a gap.
    reached = stage.committed()
    assert predicted(stage) == Counter(reached), "a gap was taken for scored"
    gone = [place for place in gone if reached[place.partition] < GONE]
    assert gone
    # What the remedy does: the group goes on where the topic begins now.
    stage.reset(gone)
    stage.finish("--instance", "a")
    assert sum(stage.committed().values()) == 800
    skipped = Counter({place.partition: GONE - reached[place.partition] for place in gone})
    assert predicted(stage) + skipped == Counter(stage.committed())


def test_f22_a_version_the_events_can_not_feed_is_refused_and_the_live_one_goes_on(stage: Stage) -> None:
    stage.publish(0.5)
    stage.send(100)
    with stage.score() as scorer:
        scorer.wait_line("live", version=1)
        stage.publish(1.5, fields="amount,weight")
        refused = scorer.wait_line("refused", version=2)
        assert refused["reason"] == "binding"
        assert "'weight'" in refused["message"]
        stage.send(100, start=100)
        wait_for(lambda: sum(stage.committed().values()) >= 200, "predictions by the version that stayed")
        assert scorer.end() == 0
    known = oracle.writer_schemas(stage.servers, stage.schemas)
    versions = {
        oracle.decode(record.value(), known)["version"] for record in oracle.read(stage.servers, stage.predictions)
    }
    assert versions == {1}


def test_f33_poison_costs_itself_only_and_its_neighbours_have_the_same_bytes(
    broker: Broker, prefix: str, tmp_path: Path
) -> None:
    clean, spoiled = (
        Stage(broker.bootstrap_servers, f"{prefix}-{letter}", tmp_path / letter, partitions=2) for letter in "cs"
    )
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = [
        {"amount": chance.uniform(-1e6, 1e6), "age": chance.randrange(100), "note": "x" * (n % 9)} for n in range(3_000)
    ]
    now_ms = int(time.time() * 1000)
    places = set(chance.sample(range(3_000), 120))
    for stage, has_poison in ((clean, False), (spoiled, True)):
        stage.publish(0.5)
        with KafkaLog({"bootstrap.servers": stage.servers}) as log:
            schemas = SchemaTopic(log, Topics(stage.prefix))
            schemas.register(EVENT)
            schemas.register(OTHER)
            schemas.close()
        producer = Producer({"bootstrap.servers": stage.servers})
        for number, event in enumerate(good):
            value = EVENT.encode_single_object(event)
            if has_poison and number in places:
                value = _poison(value, chance)
            producer.produce(stage.events, value=value, partition=number % 2, timestamp=now_ms + number)
        assert producer.flush(60) == 0
        stage.finish()
    judged = spoiled.judge()
    assert judged.is_whole
    assert judged.dead_letters == 120
    wanted = _bytes_by_source(clean)
    got = _bytes_by_source(spoiled)
    assert len(got) == 3_000 - 120
    name, other = clean.events.encode(), spoiled.events.encode()
    assert len(name) == len(other)
    for source, value in got.items():
        assert value.replace(other, name) == wanted[source], f"the prediction of {source} differs"


def _poison(value: bytes, chance: random.Random) -> bytes | None:
    huge = b"\x80\x80\x80\x80\x80\x80\x80\x80\x20"  # a length of 2^60
    return chance.choice([
        b"garbage",
        b"",
        None,
        value[: chance.randrange(1, len(value))],
        value + b"\x00",
        value[: 10 + 8 + 1] + huge,
        OTHER.encode_single_object({"weight": 1.5}),
        json.dumps({"amount": "many", "age": 1}).encode(),
        json.dumps({"amount": 1}).encode(),
        b'{"amount": 1, "age": 2}\n{"amount": 1, "age": 2}',
    ])  # fmt: skip


def _bytes_by_source(stage: Stage) -> dict[oracle.Source, bytes]:
    known = oracle.writer_schemas(stage.servers, stage.schemas)
    return {
        oracle.source_of(oracle.decode(record.value(), known)): record.value()
        for record in oracle.read(stage.servers, stage.predictions)
    }


@pytest.mark.parametrize(
    "protocol",
    [
        "partition.assignment.strategy=range",
        "partition.assignment.strategy=cooperative-sticky",
        "group.protocol=consumer",
    ],
    ids=["classic", "cooperative", "kip-848"],
)
def test_f31_members_come_and_go_while_versions_swap(stage: Stage, protocol: str) -> None:
    stage.publish(0.0)
    options = ("-X", protocol)
    with stage.feeding(2_000), stage.score("--instance", "a", *options) as steady:
        steady.wait_line("live")
        for round_ in range(2):
            with stage.score("--instance", f"guest-{round_}", *options) as guest:
                stage.publish(round_ + 1.0)
                guest.wait_line("live")
                wait_for(lambda: stage.partitions_of(f"guest-{round_}"), "the guest's partitions")  # noqa: B023
                assert guest.end() == 0
        steady.wait_line("swapped")
        assert steady.end() == 0
    stage.finish("--instance", "a", *options)
    assert stage.judge().is_whole
    known = oracle.writer_schemas(stage.servers, stage.schemas)
    amounts = {(m.partition(), m.offset()): json.loads(m.value()) for m in oracle.read(stage.servers, stage.events)}
    for record in oracle.read(stage.servers, stage.predictions):
        datum = oracle.decode(record.value(), known)
        event = amounts[oracle.source_of(datum)]
        assert datum["score"] == event["amount"] + event["age"] + (datum["version"] - 1), "its version did not make it"
