"""Which brokers a session of tests gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import brokers
from tests.containers import variable


@pytest.fixture(autouse=True)
def _nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/socket")
    monkeypatch.setenv(brokers.KIND_VARIABLE, "unset")


def test_without_an_engine_brokers_are_processes_and_the_choice_says_why() -> None:
    choice = brokers.choose("auto")
    assert str(choice).startswith("brokers: processes on this machine (no Docker engine answers: ")
    assert not brokers.in_containers()


def test_containers_that_are_asked_for_are_never_replaced() -> None:
    with pytest.raises(brokers.NoContainersError, match="no Docker engine answers"):
        brokers.choose("container")


def test_processes_that_are_asked_for_need_no_reason() -> None:
    assert str(brokers.choose("process")) == "brokers: processes on this machine"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("log.cleaner.backoff.ms", "KAFKA_LOG_CLEANER_BACKOFF_MS"),
        ("listener.name.plaintext.sasl-x", "KAFKA_LISTENER_NAME_PLAINTEXT_SASL___X"),
        ("a_b.c", "KAFKA_A__B_C"),
    ],
)
def test_settings_are_named_as_the_image_reads_them(setting: str, expected: str) -> None:
    assert variable(setting) == expected
