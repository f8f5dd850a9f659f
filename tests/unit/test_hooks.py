"""What `consumer/hooks.py` promises: callbacks hold up nobody."""

from __future__ import annotations

import threading

import pytest

from modelcast.consumer import hooks
from modelcast.consumer.hooks import Hooks
from modelcast.consumer.line import Swapped
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Refusal

from .control_rig import DEADLINE_S, wait_until

FRAUD, CHURN = ModelRef("fraud"), ModelRef("churn")


def swap_of(ref: ModelRef, version: int = 1) -> Swapped:
    return Swapped(ref, None, ModelVersion(ref.model, version), 0, 0.0, None)


def test_callbacks_are_told_of_their_model_in_order_and_off_the_callers_thread() -> None:
    made, told, threads = Hooks(), [], set()

    def tell(event: Swapped) -> None:
        told.append(str(event.new))
        threads.add(threading.get_ident())

    made.on_swap(tell, ref=FRAUD)
    made.on_refused(lambda ref, refusal: told.append(f"{ref} {refusal.version}"))
    for version in (1, 2):
        made.swapped(swap_of(FRAUD, version))
        made.swapped(swap_of(CHURN, version))
    made.refused(CHURN, Refusal(3, "golden", "off", 0))
    made.close()
    assert told == ["fraud@1", "fraud@2", "churn 3"]
    assert threading.get_ident() not in threads


def test_one_that_fails_is_logged_and_the_next_is_called(caplog: pytest.LogCaptureFixture) -> None:
    made, told = Hooks(), []

    def fail(event: Swapped) -> None:
        raise RuntimeError("of the application")

    made.on_swap(fail)
    made.on_swap(told.append)
    made.swapped(swap_of(FRAUD))
    made.close()
    assert told == [swap_of(FRAUD)]
    assert "of the application" in caplog.text


def test_one_that_hangs_neither_fills_memory_nor_keeps_anybody_from_closing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "MAX_WAITING", 3)
    made, gate, told = Hooks(), threading.Event(), []

    def hang(event: Swapped) -> None:
        told.append(event)
        assert gate.wait(DEADLINE_S)

    made.on_swap(hang)
    made.swapped(swap_of(FRAUD))
    wait_until(lambda: told, "the callback to hang")
    for version in range(10):
        made.swapped(swap_of(FRAUD, version))
    assert "is left out" in caplog.text
    made.close(timeout_s=0.01)
    assert "did not return" in caplog.text
    gate.set()
    wait_until(lambda: len(told) == 4, "those that waited to be told")
    made.swapped(swap_of(FRAUD))
    assert len(told) == 4, "nothing is told after the end"


def test_a_callback_may_close() -> None:
    made, done = Hooks(), threading.Event()

    def close(_: Swapped) -> None:
        made.close()
        done.set()

    made.on_swap(close)
    made.swapped(swap_of(FRAUD))
    assert done.wait(DEADLINE_S)
