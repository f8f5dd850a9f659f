"""What `consumer/status.py` promises: news at once, heartbeats, and never trouble for the instance."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from modelcast import codec
from modelcast.consumer.status import (
    CLOSE_TIMEOUT_S,
    HEARTBEAT_S,
    MAX_STATUS_BYTES,
    PAUSE_S_PER_MODEL,
    RETRY_S,
    UNHURRIED_MODELS,
    StatusReporter,
)
from modelcast.errors import BrokerError
from modelcast.log import LogWriter
from modelcast.names import ModelRef
from modelcast.records import InstanceStatus, ModelState, ModelStatus, Refusal

from .control_rig import TOPICS, Rig, UnsteadyLog, wait_until
from .registry_records import manifest, release

STATUS = InstanceStatus(
    repository="r",
    instance="host-0",
    host="host",
    pid=1,
    role="scorer",
    device="cpu",
    at_ms=1000,
    runtime={"onnxruntime": "1"},
    models=(ModelStatus("fraud", None, ModelState.LIVE, live_version=3, since_ms=900, load_ms=5.0, swaps=2),),
)


class Bench:
    def __init__(self) -> None:
        self.log = UnsteadyLog()
        self.now_s = 50.0
        self.reporter = StatusReporter(self.log, TOPICS, clock=lambda: self.now_s)

    def report(self, status: InstanceStatus) -> None:
        """Reports, and again once a writer is open or could not be opened."""
        self.reporter.report(status)
        opening = self.reporter._opening
        if opening is not None:
            opening.join()
            self.reporter.report(status)

    def sent(self) -> list[InstanceStatus]:
        reader = self.log._log.reader(TOPICS.status, {0: 0})
        records = reader.poll(0.0)
        assert {record.key for record in records} <= {b"host-0"}
        return [codec.decode_status(record.value) for record in records]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_status_is_sent_under_the_instances_name(bench: Bench) -> None:
    bench.report(STATUS)
    assert bench.sent() == [STATUS]


def test_time_alone_is_no_news(bench: Bench) -> None:
    bench.report(STATUS)
    bench.now_s += HEARTBEAT_S - 0.1
    bench.report(replace(STATUS, at_ms=2000))
    assert len(bench.sent()) == 1


def test_a_heartbeat_goes_out_when_due_and_again_after_another(bench: Bench) -> None:
    for _ in range(4):
        bench.report(STATUS)
        bench.now_s += HEARTBEAT_S
    assert len(bench.sent()) == 4


def test_a_change_goes_out_at_once(bench: Bench) -> None:
    bench.report(STATUS)
    changed = replace(STATUS, models=(replace(STATUS.models[0], live_version=4),))
    bench.report(changed)
    assert bench.sent() == [STATUS, changed]


def test_figures_that_move_all_the_time_go_along_and_are_no_news(bench: Bench) -> None:
    bench.report(STATUS)
    moved = replace(STATUS.models[0], events=10, events_per_s=2.5, lag=3, dead_letters=1)
    busy = replace(STATUS, at_ms=2000, models=(moved,))
    bench.report(busy)
    assert bench.sent() == [STATUS]
    bench.now_s += HEARTBEAT_S
    bench.report(busy)
    assert bench.sent() == [STATUS, busy]


def test_that_the_registry_is_away_is_news_and_for_how_long_is_not(bench: Bench) -> None:
    for stale_ms in (None, 1_000, 2_000, None):
        bench.report(replace(STATUS, stale_ms=stale_ms))
    assert [status.stale_ms for status in bench.sent()] == [None, 1_000, None]


@pytest.mark.parametrize(
    "news",
    [
        {"next_version": 4, "next_state": "fetching"},
        {"stale": True},
        {"state": ModelState.IDLE},
        {"refusals": (Refusal(4, "golden", "no", 1),)},
    ],
)
def test_what_becomes_of_a_version_is_news(bench: Bench, news: dict[str, object]) -> None:
    bench.report(STATUS)
    bench.report(replace(STATUS, models=(replace(STATUS.models[0], **news),)))
    assert len(bench.sent()) == 2


def test_a_log_that_is_away_is_no_trouble_and_tried_again_later(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.log.down = True
    for _ in range(2 * int(RETRY_S)):
        bench.report(STATUS)
        bench.now_s += 1
    bench.report(STATUS)
    bench.log.down = False
    bench.report(STATUS)
    assert bench.sent() == []
    assert caplog.text.count("can't be written") == 1
    bench.now_s += RETRY_S
    bench.report(STATUS)
    assert bench.sent() == [STATUS]


class BreakingWriter:
    """Takes one record, then fails as a client library that had a fatal error does."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False

    def send(self, *_: object, **__: object) -> None:
        if self.taken:
            raise BrokerError("fatal")
        self.taken += 1

    def flush(self, timeout_s: float) -> None:
        raise BrokerError(f"1 record is not acknowledged after {timeout_s} s")

    def close(self) -> None:
        self.closed = True


def test_a_writer_that_broke_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BreakingWriter()
    monkeypatch.setattr(bench.log, "writer", lambda: broken, raising=False)
    bench.report(STATUS)
    bench.now_s += HEARTBEAT_S
    bench.report(STATUS)
    assert broken.closed
    monkeypatch.undo()
    bench.now_s += RETRY_S
    bench.report(STATUS)
    assert len(bench.sent()) == 1


def test_an_acknowledgement_that_is_late_keeps_no_status_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = bench.log.writer()
    monkeypatch.setattr(slow, "flush", BreakingWriter().flush)
    monkeypatch.setattr(bench.log, "writer", lambda: slow, raising=False)
    for _ in range(3):
        bench.report(STATUS)
        bench.now_s += HEARTBEAT_S
    assert len(bench.sent()) == 3


def test_close_says_that_the_models_stopped(bench: Bench) -> None:
    bench.report(STATUS)
    bench.reporter.close(STATUS)
    last = bench.sent()[-1]
    (model,) = last.models
    assert last.ended
    assert (model.state, model.live_version, model.swaps) == (ModelState.STOPPED, None, 2)


def test_an_instance_that_ends_at_once_says_so(bench: Bench) -> None:
    bench.reporter.close(STATUS)
    assert [status.ended for status in bench.sent()] == [True]


def test_close_is_silent_when_the_log_is_away(bench: Bench) -> None:
    bench.report(STATUS)
    bench.log.down = True
    bench.reporter.close(STATUS)


def test_a_missing_status_topic_is_no_trouble(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    del bench.log._log._topics[TOPICS.status]
    bench.report(STATUS)
    bench.reporter.close(STATUS)
    assert "host-0" in caplog.text


class HangingLog:
    """Opens writers when it is let, as Kafka does while no broker answers."""

    def __init__(self, log: UnsteadyLog) -> None:
        self.answers = threading.Event()
        self.closed = threading.Event()
        self.opened = 0
        self._log = log

    def writer(self) -> LogWriter:
        self.opened += 1
        assert self.answers.wait(60.0)
        writer: LogWriter = self._log.writer()
        writer.close = self.closed.set  # type: ignore[method-assign]
        return writer


def test_news_of_many_models_waits_a_little_and_of_few_does_not(bench: Bench) -> None:
    assert not bench.reporter.is_too_soon(1_000)  # nothing was said yet
    bench.report(STATUS)
    assert not bench.reporter.is_too_soon(UNHURRIED_MODELS)
    assert bench.reporter.is_too_soon(1_000)
    bench.now_s += 1_000 * PAUSE_S_PER_MODEL
    assert not bench.reporter.is_too_soon(1_000)


def test_an_instance_of_many_models_tells_of_their_loads_together() -> None:
    refs = tuple(ModelRef(f"m{number}") for number in range(UNHURRIED_MODELS + 10))
    rig = Rig(refs=refs)
    rig.init()
    for ref in refs[:10]:
        rig.put(manifest(1, model=ref.model), release(1, 1, model=ref.model))
    rig.settle()
    told = len(rig.statuses())
    assert len(rig.loader.calls) == 10
    assert told < 10  # by a clock that stands still
    rig.now_s += 1.0
    rig.plane.step()
    assert sum(model.live_version == 1 for model in rig.statuses()[-1].models) == 10


class TestALogThatHangs:
    @pytest.fixture
    def hanging(self, bench: Bench) -> HangingLog:
        log = HangingLog(bench.log)
        bench.reporter = StatusReporter(log, TOPICS, clock=lambda: bench.now_s)  # type: ignore[arg-type]
        return log

    def test_holds_up_nobody_and_gets_the_newest_status_when_it_answers(
        self, bench: Bench, hanging: HangingLog
    ) -> None:
        started = time.monotonic()
        for version in range(4, 14):
            bench.now_s += 1
            bench.reporter.report(replace(STATUS, models=(replace(STATUS.models[0], live_version=version),)))
        assert time.monotonic() - started < 30.0
        assert hanging.opened == 1
        hanging.answers.set()
        bench.report(STATUS)
        assert [status.models[0].live_version for status in bench.sent()] == [4, 3]

    def test_holds_up_no_end_and_what_it_opens_later_is_closed(self, bench: Bench, hanging: HangingLog) -> None:
        started = time.monotonic()
        bench.reporter.report(STATUS)
        bench.reporter.close(STATUS)
        assert time.monotonic() - started < CLOSE_TIMEOUT_S + 30.0
        hanging.answers.set()
        wait_until(hanging.closed.is_set, "the late writer to be closed")


def test_a_status_too_large_for_a_record_goes_out_without_its_refusals(bench: Bench) -> None:
    refused = replace(STATUS.models[0], refusals=(Refusal(4, "golden", "x" * 5_000, 1),) * 10)
    bench.report(replace(STATUS, models=(refused,)))
    bench.report(replace(STATUS, models=(refused,) * 200))
    short, none = bench.sent()
    assert {len(refusal.message) for refusal in short.models[0].refusals} == {1_000}
    assert {model.refusals for model in none.models} == {()}
    assert len(codec.encode_status(none)) < MAX_STATUS_BYTES
