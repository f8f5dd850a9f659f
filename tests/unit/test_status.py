"""What `consumer/status.py` promises: news at once, heartbeats, and never trouble for the instance."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcast import codec
from modelcast.consumer.status import HEARTBEAT_S, RETRY_S, StatusReporter
from modelcast.errors import BrokerError
from modelcast.records import InstanceStatus, ModelState, ModelStatus

from .control_rig import TOPICS, UnsteadyLog

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

    def sent(self) -> list[InstanceStatus]:
        reader = self.log._log.reader(TOPICS.status, {0: 0})
        records = reader.poll(0.0)
        assert {record.key for record in records} <= {b"host-0"}
        return [codec.decode_status(record.value) for record in records]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_status_is_sent_under_the_instances_name(bench: Bench) -> None:
    bench.reporter.report(STATUS)
    assert bench.sent() == [STATUS]


def test_time_alone_is_no_news(bench: Bench) -> None:
    bench.reporter.report(STATUS)
    bench.now_s += HEARTBEAT_S - 0.1
    bench.reporter.report(replace(STATUS, at_ms=2000))
    assert len(bench.sent()) == 1


def test_a_heartbeat_goes_out_when_due_and_again_after_another(bench: Bench) -> None:
    for _ in range(4):
        bench.reporter.report(STATUS)
        bench.now_s += HEARTBEAT_S
    assert len(bench.sent()) == 4


def test_a_change_goes_out_at_once(bench: Bench) -> None:
    bench.reporter.report(STATUS)
    changed = replace(STATUS, models=(replace(STATUS.models[0], live_version=4),))
    bench.reporter.report(changed)
    assert bench.sent() == [STATUS, changed]


def test_a_log_that_is_away_is_no_trouble_and_tried_again_later(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.log.down = True
    for _ in range(10):
        bench.reporter.report(STATUS)
        bench.now_s += 1
    bench.log.down = False
    bench.reporter.report(STATUS)
    assert bench.sent() == []
    assert caplog.text.count("can't be written") == 1
    bench.now_s += RETRY_S
    bench.reporter.report(STATUS)
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
    bench.reporter.report(STATUS)
    bench.now_s += HEARTBEAT_S
    bench.reporter.report(STATUS)
    assert broken.closed
    monkeypatch.undo()
    bench.now_s += RETRY_S
    bench.reporter.report(STATUS)
    assert len(bench.sent()) == 1


def test_an_acknowledgement_that_is_late_keeps_no_status_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = bench.log.writer()
    monkeypatch.setattr(slow, "flush", BreakingWriter().flush)
    monkeypatch.setattr(bench.log, "writer", lambda: slow, raising=False)
    for _ in range(3):
        bench.reporter.report(STATUS)
        bench.now_s += HEARTBEAT_S
    assert len(bench.sent()) == 3


def test_close_says_that_the_models_stopped(bench: Bench) -> None:
    bench.reporter.report(STATUS)
    bench.reporter.close(STATUS)
    (model,) = bench.sent()[-1].models
    assert (model.state, model.live_version, model.swaps) == (ModelState.STOPPED, None, 2)


def test_close_is_silent_when_the_log_is_away(bench: Bench) -> None:
    bench.reporter.report(STATUS)
    bench.log.down = True
    bench.reporter.close(STATUS)


def test_a_missing_status_topic_is_no_trouble(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    del bench.log._log._topics[TOPICS.status]
    bench.reporter.report(STATUS)
    bench.reporter.close(STATUS)
    assert "host-0" in caplog.text
