"""Row 16 of the fault matrix: a clock a day off, or set back, makes nothing un-expire."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.trust.admission import PolicyAdmission, Reason
from modelcast.trust.clock import FILE_NAME, SAVE_EVERY_MS, SteadyClock, reset

from .registry_records import manifest
from .trust_rig import NOW_MS, policy, sealed

DAY_MS = 24 * 3600 * 1000


class Host:
    """A host's clocks, to be turned."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.system_ms = NOW_MS
        self.monotonic_s = 50.0

    def start(self) -> SteadyClock:
        """A process that starts now."""
        return SteadyClock(self.folder, system_ms=lambda: self.system_ms, monotonic_s=lambda: self.monotonic_s)


def test_f16_a_clock_set_back_does_not_bring_back_a_key_also_after_a_restart(tmp_path: Path) -> None:
    host = Host(tmp_path)
    until = policy("fraud*: alice", alice='expires = "2027-01-15T09:00:00Z"')  # an hour after NOW_MS
    envelope = sealed(manifest(1), "alice")

    def verdict(clock: SteadyClock) -> Reason:
        return PolicyAdmission(until, clock.now_ms).judge("fraud", envelope).reason

    assert verdict(host.start()) is Reason.ADMITTED
    host.system_ms += DAY_MS
    clock = host.start()
    assert verdict(clock) is Reason.EXPIRED
    host.system_ms -= 3 * DAY_MS
    assert verdict(clock) is Reason.EXPIRED
    assert verdict(host.start()) is Reason.EXPIRED


def test_f16_time_goes_on_while_the_clock_stands_back(tmp_path: Path) -> None:
    host = Host(tmp_path)
    clock = host.start()
    assert clock.now_ms() == NOW_MS
    host.system_ms -= DAY_MS
    host.monotonic_s += 3600
    assert clock.now_ms() == NOW_MS + 3600 * 1000


def test_f16_a_clock_that_is_right_again_is_followed(tmp_path: Path) -> None:
    host = Host(tmp_path)
    clock = host.start()
    host.system_ms -= DAY_MS
    clock.now_ms()
    host.system_ms += 3 * DAY_MS
    assert clock.now_ms() == host.system_ms


@given(st.lists(st.tuples(st.integers(-3 * DAY_MS, 3 * DAY_MS), st.integers(0, 10_000), st.booleans()), max_size=30))
def test_f16_time_never_goes_back_whatever_the_clock_does(jumps: list[tuple[int, int, bool]]) -> None:
    host = Host(None)
    clock, last = host.start(), 0
    for by_ms, later_s, _ in jumps:
        host.system_ms += by_ms
        host.monotonic_s += later_s
        now = clock.now_ms()
        assert now >= max(last, host.system_ms)
        last = now


def test_f16_after_a_restart_no_more_than_a_minute_is_forgotten(tmp_path: Path) -> None:
    host = Host(tmp_path)
    clock = host.start()
    for _ in range(100):
        host.system_ms += 7_000
        clock.now_ms()
    latest = host.system_ms
    host.system_ms -= DAY_MS
    assert latest - SAVE_EVERY_MS <= host.start().now_ms() <= latest


def test_a_floor_wrongly_far_ahead_is_forgotten_on_request(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.system_ms += 3650 * DAY_MS
    host.start().now_ms()
    host.system_ms = NOW_MS
    assert host.start().now_ms() > NOW_MS
    assert reset(tmp_path)
    assert host.start().now_ms() == NOW_MS
    reset(tmp_path)
    assert not reset(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"floor_ms": "x"}', '{"floor_ms": -1}', "9" * 5000])
def test_a_damaged_file_is_said_once_and_costs_no_service(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with caplog.at_level(logging.ERROR):
        clock = Host(tmp_path).start()
        assert clock.now_ms() == NOW_MS
    assert len([line for line in caplog.messages if "expired keys would count again" in line]) == 1
    assert json.loads((tmp_path / FILE_NAME).read_text()) == {"floor_ms": NOW_MS}


def test_a_folder_that_can_not_be_written_costs_no_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    host = Host(tmp_path / "file" / "state")
    with caplog.at_level(logging.ERROR):
        clock = host.start()
        for _ in range(5):
            host.system_ms += SAVE_EVERY_MS
            assert clock.now_ms() == host.system_ms
    assert len([line for line in caplog.messages if "expired keys would count again" in line]) == 1
