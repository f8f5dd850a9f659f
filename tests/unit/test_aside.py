"""What `consumer/aside.py` promises: only what was seen to be quick runs on an event loop."""

from __future__ import annotations

import pytest

from modelcast.consumer.aside import INLINE_S, Pace


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


QUICK_S, SLOW_S, MISJUDGED_S = INLINE_S / 2, INLINE_S * 2, INLINE_S * 11


def test_what_was_never_seen_is_not_quick() -> None:
    assert not Pace().is_quick("v1", 1)


@pytest.mark.parametrize(("rows", "is_quick"), [(64, True), (127, True), (128, False), (63, False), (None, False)])
def test_batches_of_about_the_size_of_a_quick_one_are_quick(rows: int | None, is_quick: bool) -> None:
    pace = Pace()
    pace.note("v1", 100, QUICK_S, inline=False)
    pace.note("v1", None, QUICK_S, inline=False)
    assert pace.is_quick("v1", rows) is is_quick


def test_the_fastest_run_counts_since_others_had_to_wait_for_the_machine() -> None:
    pace = Pace()
    for took_s in (SLOW_S, QUICK_S, SLOW_S):
        pace.note("v1", 1, took_s, inline=False)
    assert pace.is_quick("v1", 1)


def test_another_version_starts_anew() -> None:
    pace = Pace()
    pace.note("v1", 1, QUICK_S, inline=False)
    assert not pace.is_quick("v2", 1)
    pace.note("v2", 1, SLOW_S, inline=False)
    assert not pace.is_quick("v2", 1)


def test_what_blocked_the_loop_after_all_keeps_off_it_for_a_while() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note("v1", 1, QUICK_S, inline=False)
    pace.note("v1", 1, SLOW_S, inline=True)
    assert pace.is_quick("v1", 1), "the machine was busy"
    pace.note("v1", 1, MISJUDGED_S, inline=True)
    pace.note("v1", 1, QUICK_S, inline=False)
    assert not pace.is_quick("v1", 1)
    clock.now_s = 11.0
    assert pace.is_quick("v1", 1)
