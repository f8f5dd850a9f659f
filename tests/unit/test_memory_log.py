"""The in-memory log keeps the contract of every log, and wakes readers rather than letting them sleep."""

from __future__ import annotations

import threading
import time

import pytest

from modelcast.log import BEGINNING, Log, TopicSpec
from modelcast.testing.memory import MemoryLog
from tests.log_contract import LogContract


class TestMemoryLog(LogContract):
    @pytest.fixture
    def log(self) -> Log:
        return MemoryLog()


def test_a_waiting_reader_is_woken_by_a_record() -> None:
    log = MemoryLog()
    log.create(TopicSpec("t", 1))
    reader = log.reader("t", {0: 0})
    writer = log.writer()
    threading.Timer(0.05, lambda: writer.send("t", key=None, value=b"x")).start()
    started = time.monotonic()
    assert [record.value for record in reader.poll(60.0)] == [b"x"]
    assert time.monotonic() - started < 30.0


def test_a_waiting_reader_is_woken_by_a_commit() -> None:
    log = MemoryLog()
    log.create(TopicSpec("t", 1))
    writer = log.transactional_writer("id", timeout_ms=1_000)
    writer.begin()
    writer.send("t", key=None, value=b"x")
    reader = log.reader("t", {0: 0})
    threading.Timer(0.05, writer.commit).start()
    assert [record.value for record in reader.poll(60.0)] == [b"x"]
    assert reader.position(0) == 2


def test_time_is_what_the_clock_says() -> None:
    log = MemoryLog(clock=lambda: 12.5)
    log.create(TopicSpec("t", 1))
    log.writer().send("t", key=None, value=b"x")
    assert log.reader("t", {0: BEGINNING}).poll(0)[0].timestamp_ms == 12_500
