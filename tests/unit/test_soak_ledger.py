"""The soak's judge finds every broken promise it is there for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.soak.ledger import Events, Floats, Ledger, Model


def sum_of(version: int) -> Model:
    def score(rows: Floats) -> Floats:
        return rows.sum(axis=1, dtype=np.float32) + np.float32(version)

    return score


@pytest.fixture
def ledger() -> Ledger:
    """Of four events in partition 0, the third of them poison, and one in partition 1."""
    events = Events()
    for offset, row in enumerate([(1.0, 2.0), (3.0, 4.0), None, (5.0, 6.0)]):
        events.add(0, offset, row)
    events.add(1, 0, (7.0, 8.0))
    return Ledger("stream", events)


def score_all(ledger: Ledger) -> None:
    for partition, offset, score in [(0, 0, 4.0), (0, 1, 8.0), (0, 3, 12.0), (1, 0, 16.0)]:
        ledger.predicted(partition, partition, offset, 1, score)
    ledger.lettered(0, 0, 2)


def test_a_stream_whose_events_have_one_outcome_each_is_sound(ledger: Ledger) -> None:
    score_all(ledger)
    ledger.rescore(sum_of)
    ledger.settle({0: 4, 1: 1})
    assert (ledger.faults, ledger.settled, ledger.by_version, ledger.waiting) == ([], 5, {1: 4}, 0)


def test_an_event_without_an_outcome_is_lost(ledger: Ledger) -> None:
    ledger.predicted(0, 0, 0, 1, 4.0)
    ledger.settle({0: 2, 1: 1})
    assert ledger.faults == [
        "stream: 1 events lost in partition 0: [1]",
        "stream: 1 events lost in partition 1: [0]",
    ]
    assert ledger.settled == 1


def test_a_second_outcome_is_found_before_and_after_events_were_settled(ledger: Ledger) -> None:
    score_all(ledger)
    ledger.lettered(1, 1, 0)
    assert ledger.faults == ["stream: event 0 of partition 1 has a second outcome"]
    ledger.settle({0: 4, 1: 1})
    ledger.events.forget({0: 4, 1: 1})
    ledger.predicted(0, 0, 3, 1, 12.0)
    assert ledger.faults[1:] == [
        "stream: event 3 of partition 0 comes after 3",
        "stream: event 3 of partition 0 has a second outcome",
    ]


def test_outcomes_out_of_order_or_in_another_partition_are_found(ledger: Ledger) -> None:
    ledger.predicted(0, 0, 1, 1, 8.0)
    ledger.predicted(0, 0, 0, 1, 4.0)
    ledger.predicted(2, 1, 0, 1, 16.0)
    assert ledger.faults == [
        "stream: event 0 of partition 0 comes after 1",
        "stream: event 0 of partition 1 has its outcome in partition 2",
    ]


def test_a_prediction_that_its_version_does_not_give_is_found_to_the_bit(ledger: Ledger) -> None:
    ledger.predicted(0, 0, 0, 1, float(np.nextafter(np.float32(4), np.float32(5))))
    ledger.predicted(0, 0, 1, 2, 9.0)
    ledger.rescore(sum_of)
    assert len(ledger.faults) == 1
    assert "event 0 of partition 0: version 1 predicted" in ledger.faults[0]


def test_a_sound_event_is_no_dead_letter_and_poison_no_prediction(ledger: Ledger) -> None:
    ledger.lettered(0, 0, 0)
    ledger.predicted(0, 0, 2, 1, 1.0)
    ledger.rescore(sum_of)
    ledger.settle({0: 1})
    assert ledger.faults == [
        "stream: version 1 scored what nobody can score",
        "stream: 1 sound events of partition 0 are dead letters: [0]",
    ]


def test_what_has_no_model_or_no_event_yet_waits(ledger: Ledger) -> None:
    ledger.predicted(0, 0, 0, 1, 4.0)
    ledger.predicted(1, 1, 1, 2, 11.0)
    ledger.rescore(lambda version: None if version == 1 else sum_of(version))
    assert ledger.waiting == 2
    ledger.events.add(1, 1, (4.0, 5.0))
    ledger.rescore(sum_of)
    assert (ledger.waiting, ledger.faults) == (0, [])


def test_events_with_a_gap_are_refused() -> None:
    events = Events()
    with pytest.raises(ValueError, match="event 1 of partition 0 follows -1"):
        events.add(0, 1, (1.0, 2.0))
