"""What becomes of a commit at every place it can be broken, on a real broker behind a proxy that breaks it there.

Judged from the topics by an oracle that shares no code with the scorers.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from modelcast.dev.broker import LocalBroker
from modelcast.errors import BrokerError
from modelcast.kafka import KafkaLog
from tests.fault_proxy import Api, FaultProxy, Way, proxied_broker
from tests.machine import Stopwatch
from tests.reliability.figures import figure

from .scorer_processes import BROKER_BACK_S, Stage, wait_for

# A transaction that nobody ends would stay open for longer than any test waits: what ends it is what is tested.
LASTING: Mapping[str, object] = {"modelcast.consumer.scorer:TRANSACTION_TIMEOUT_MS": 300_000}
# Nor does a scorer give an answer up that a test withholds.
PATIENT: Mapping[str, object] = {**LASTING, "modelcast.kafka.batch:OFFSETS_TIMEOUT_S": 300.0}
# Of a commit without an answer; the scorer's own 30 s are for clusters that elect a leader.
DOUBT_S = 3.0
IMPATIENT: Mapping[str, object] = {"modelcast.kafka.transaction:COMMIT_TIMEOUT_S": DOUBT_S}

PLACES = [
    (Api.ADD_OFFSETS_TO_TXN, Way.REQUEST),
    (Api.TXN_OFFSET_COMMIT, Way.REQUEST),
    (Api.TXN_OFFSET_COMMIT, Way.ANSWER),
    (Api.END_TXN, Way.REQUEST),
    (Api.END_TXN, Way.ANSWER),
]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalBroker, FaultProxy]]:
    with proxied_broker(tmp_path_factory.mktemp("proxied")) as running:
        yield running


@pytest.fixture
def stage(proxied: tuple[LocalBroker, FaultProxy], prefix: str, tmp_path: Path) -> Stage:
    stage = Stage(proxied[0].bootstrap_servers, prefix, tmp_path)
    stage.publish(0.5)
    return stage


@pytest.fixture
def proxy(proxied: tuple[LocalBroker, FaultProxy]) -> Iterator[FaultProxy]:
    yield proxied[1]
    proxied[1].forget()


def test_f27_a_scorer_killed_at_any_place_of_a_transaction_is_followed_by_one_that_ends_it(
    stage: Stage, proxy: FaultProxy
) -> None:
    for round_, (api, way) in enumerate(PLACES):
        hold = proxy.hold(api, way)
        stage.send(200, start=200 * round_)
        with stage.score("--instance", "a", servers=proxy.address, limits=LASTING) as scorer:
            hold.await_caught()
            scorer.kill()
        # A request still on its way when its sender died may arrive; an answer finds nobody.
        hold.let_go() if round_ % 2 else hold.lose()
    stage.finish("--instance", "a")
    judged = stage.judge()
    assert judged.is_whole
    assert judged.predictions == judged.events == 200 * len(PLACES)


def test_f28_a_broker_killed_at_any_place_of_a_commit_leaves_the_scorer_going_on(
    stage: Stage, proxy: FaultProxy, proxied: tuple[LocalBroker, FaultProxy]
) -> None:
    broker, _ = proxied
    with stage.feeding(500), stage.score("--instance", "a", servers=proxy.address) as scorer:
        scorer.wait_line("live")
        for api, way in PLACES[2:]:
            hold = proxy.hold(api, way)
            hold.await_caught()
            broker.kill()
            hold.cut()
            broker.start()
            stage.await_scored(timeout_s=BROKER_BACK_S)
        assert scorer.end() == 0, scorer.last_words()
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f29_in_doubt_about_a_commit_a_new_producer_finds_out_before_offsets_are_read(
    stage: Stage, proxy: FaultProxy
) -> None:
    telling = (Api.END_TXN, Api.INIT_PRODUCER_ID, Api.OFFSET_FETCH)
    with stage.feeding(500), stage.score("--instance", "a", servers=proxy.address, limits=IMPATIENT) as scorer:
        for way, comes_late in product(Way, (True, False)):
            stage.await_scored(100)
            hold = proxy.hold(Api.END_TXN, way)
            hold.await_caught()
            asked, told = len(proxy.requests(*telling)), len(scorer.said("recovering"))
            wait_for(lambda: len(scorer.said("recovering")) > told, "the doubt to be told")  # noqa: B023
            wait_for(lambda: Api.OFFSET_FETCH in proxy.requests(*telling)[asked:], "offsets to be read")  # noqa: B023
            seen = proxy.requests(*telling)[asked:]
            # Late: the commit, or the answer to it, comes after its transaction was ended by the new producer.
            hold.let_go() if comes_late else hold.lose()
            cause = scorer.said("recovering")[told]["cause"]
            print(f"{way.name}, late {comes_late}: {[api.name for api in seen]}")
            assert "whether it was committed is not known" in cause
            assert set(seen[: seen.index(Api.OFFSET_FETCH)]) == {Api.INIT_PRODUCER_ID}, "asked of the one in doubt"
        stage.await_scored(100)
        assert scorer.end() == 0, scorer.last_words()
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f29_a_connection_cut_in_a_commit_is_no_doubt_where_the_next_one_tells(stage: Stage, proxy: FaultProxy) -> None:
    with stage.feeding(500), stage.score("--instance", "a", servers=proxy.address) as scorer:
        for way in Way:
            stage.await_scored(100)
            hold = proxy.hold(Api.END_TXN, way)
            hold.await_caught()
            proxy.cut_all()
            hold.cut()
        stage.await_scored(100)
        assert scorer.end() == 0, scorer.last_words()
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f37_a_signal_inside_a_transaction_lets_it_finish(stage: Stage, proxy: FaultProxy) -> None:
    stage.send(1_000)
    with stage.score("--instance", "a", servers=proxy.address) as scorer:
        hold = proxy.hold(Api.END_TXN, Way.REQUEST)
        hold.await_caught()
        scorer.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # nothing tells when a signal was taken
        hold.let_go()
        assert scorer.process.wait(120) == 0, scorer.last_words()
        stopped = scorer.wait_line("stopped")
    assert stopped["events"] == sum(stage.committed().values()) > 0, "what was finished is not what was told"
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f41_offsets_of_partitions_lost_meanwhile_are_refused_and_nothing_is_doubled(
    stage: Stage, proxy: FaultProxy
) -> None:
    with (
        stage.feeding(500),
        stage.score("--instance", "a", servers=proxy.address, limits=PATIENT) as slow,
        stage.score("--instance", "b") as other,
    ):
        for scorer in (slow, other):
            scorer.wait_line("live")
        wait_for(lambda: len(stage.partitions_of("a")) == len(stage.partitions_of("b")) == 2, "two partitions each")
        mine = stage.partitions_of("a")
        offsets = proxy.hold(Api.TXN_OFFSET_COMMIT, Way.REQUEST)
        offsets.await_caught()
        # Nor may it join again, by a connection of its own, before the other has scored anything.
        silent = [proxy.hold(api, Way.REQUEST, every=True) for api in (Api.HEARTBEAT, Api.JOIN_GROUP)]
        reached = stage.committed()
        wait_for(
            lambda: all(stage.committed().get(p, 0) > reached.get(p, 0) for p in mine),
            "the other to score it",
        )
        offsets.let_go()
        for held in silent:
            held.let_go()
        refused = slow.wait_line("recovering")
        wait_for(lambda: stage.partitions_of("a"), "it to come back")
        assert slow.end() == 0, slow.last_words()
    print(f"refused: {refused['cause']}")
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f37_a_signal_while_nobody_answers_a_commit_ends_the_scorer_all_the_same(
    stage: Stage, proxy: FaultProxy
) -> None:
    stage.send(1_000)
    drain_s = 3.0
    limits = {"modelcast.consumer.loop:CLOSE_DRAIN_S": drain_s, "modelcast.consumer.scorer:CLOSE_DRAIN_S": drain_s}
    with stage.score("--instance", "a", servers=proxy.address, limits=limits) as scorer:
        hold = proxy.hold(Api.END_TXN, Way.REQUEST)
        hold.await_caught()
        watch = Stopwatch()
        assert scorer.end() == 0, scorer.last_words()
        took_s = watch.took_s
        in_time = watch.allows(took_s, 2 * drain_s + 5)
        hold.lose()
    figure(f"ended {took_s:.1f} s after SIGTERM; {drain_s:g} s to finish, as long again to close")
    assert in_time, took_s
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f29_an_id_that_can_not_be_taken_in_time_is_an_error_and_no_noise(
    stage: Stage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = proxy.hold(Api.INIT_PRODUCER_ID, Way.ANSWER)
    with KafkaLog({"bootstrap.servers": proxy.address}) as log:
        with monkeypatch.context() as patch:
            patch.setattr("modelcast.kafka.transaction.INIT_TIMEOUT_S", 0.5)
            for take in (log.transactional_batch_producer, log.transactional_writer):
                with pytest.raises(BrokerError, match="can't take transactional id"):
                    take(f"{stage.prefix}-id", timeout_ms=10_000)  # a warning of the client's would be raised instead
                hold.lose()
                hold = proxy.hold(Api.INIT_PRODUCER_ID, Way.ANSWER)
        hold.let_go()
        with closing(log.transactional_batch_producer(f"{stage.prefix}-id", timeout_ms=10_000)) as producer:
            producer.begin()
            producer.abort()
