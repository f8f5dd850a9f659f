"""The cycle collector while a scorer runs: quiet inside batches, and still finding every cycle."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from modelcast.consumer.collector import FULL_INTERVAL_S, YOUNG_INTERVAL_S, YOUNG_OBJECTS_MAX, QuietCollector


class Node:
    def __init__(self) -> None:
        self.me = self


def cycle() -> weakref.ref[Node]:
    return weakref.ref(Node())


@pytest.fixture(autouse=True)
def collector_left_as_it_was() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    assert gc.isenabled()
    yield
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_nothing_is_collected_inside_a_batch() -> None:
    with QuietCollector():
        lost = cycle()
        kept: list[list[int]] = [[] for _ in range(50_000)]
        assert lost() is not None
        assert len(kept) == 50_000


def test_cycles_are_found_between_batches_once_a_second() -> None:
    now = [0.0]
    with QuietCollector(clock=lambda: now[0]) as collector:
        lost = cycle()
        collector.between_batches()
        assert lost() is not None
        now[0] += YOUNG_INTERVAL_S
        collector.between_batches()
        assert lost() is None


def test_many_objects_do_not_wait_for_their_second() -> None:
    with QuietCollector(clock=lambda: 0.0) as collector:
        lost = cycle()
        kept: list[list[int]] = [[] for _ in range(YOUNG_OBJECTS_MAX + 1000)]
        collector.between_batches()
        assert lost() is None
        assert kept


def test_old_cycles_are_found_once_a_minute() -> None:
    now = [0.0]
    with QuietCollector(clock=lambda: now[0]) as collector:
        node = Node()
        for _ in range(3):  # survives into the oldest generation
            now[0] += YOUNG_INTERVAL_S
            collector.between_batches()
        lost = weakref.ref(node)
        del node
        now[0] += YOUNG_INTERVAL_S
        collector.between_batches()
        assert lost() is not None
        now[0] += FULL_INTERVAL_S
        collector.between_batches()
        assert lost() is None


def test_a_failure_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ValueError, match="broken"), QuietCollector():
        raise ValueError("broken")
