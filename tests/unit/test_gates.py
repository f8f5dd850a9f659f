"""Requirements: how they are read, what they are judged by, what is said of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.errors import ExitCode, GateError, UsageError
from modelcast.names import ModelVersion
from modelcast.publisher.gates import NO_CHAMPION, PROBED, Champion, judge, parse, probe_metrics
from modelcast.records import LoadProbe

LIVE = Champion(ModelVersion("fraud", 3), {"auc": 0.9, "load_ms": 100.0})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("auc>=0.8", "auc>=0.8"),
        (" auc >= .8 ", "auc>=.8"),
        ("log_loss<1e-1", "log_loss<1e-1"),
        ("shift>-0.5", "shift>-0.5"),
        ("auc>=champion", "auc>=champion"),
        ("auc >= champion - 0.01", "auc>=champion-0.01"),
        ("load_ms<champion*1.2", "load_ms<champion*1.2"),
        ("rows==1000", "rows==1000"),
        ("f1@0.5>0.3", "f1@0.5>0.3"),
    ],
)
def test_a_requirement_is_a_metric_an_operator_and_a_limit(text: str, told: str) -> None:
    assert str(parse(text)) == told
    assert parse(told) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "auc",
        "auc>=",
        ">=0.8",
        "auc=0.8",
        "auc=>0.8",
        "auc!=0.8",
        "auc>=0,8",
        "auc>=nan",
        "auc>=inf",
        "auc>=1e999",
        "auc>=champion-",
        "auc>=champion/2",
        "auc>=champion--1",
        "auc>=challenger",
        "auc>=0.8 and f1>=0.5",
    ],
)
def test_what_is_no_requirement_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert "'auc>=0.8'" in (refused.value.hint or "")


@given(st.text(max_size=20))
def test_no_text_is_more_than_refused(text: str) -> None:
    try:
        parse(text)
    except UsageError:
        return


@pytest.mark.parametrize(
    ("requirement", "value", "met"),
    [
        ("auc>=0.8", 0.8, True),
        ("auc>0.8", 0.8, False),
        ("auc<=0.8", 0.8, True),
        ("auc<0.8", 0.8, False),
        ("auc==0.8", 0.8, True),
        ("auc==0.8", 0.81, False),
        ("auc>=champion", 0.9, True),
        ("auc>champion", 0.9, False),
        ("auc>=champion-0.01", 0.89, True),  # 0.9 - 0.01 is more than 0.89 as floats are subtracted
        ("auc>=champion-0.01", 0.8899, False),
        ("auc>=champion+0.05", 0.95, True),
        ("auc>=champion*1.1", 0.99, True),
        ("auc>=champion*1.1", 0.98, False),
    ],
)
def test_judged_as_people_reckon(requirement: str, value: float, met: bool) -> None:
    if met:
        assert len(judge([parse(requirement)], {"auc": value}, LIVE)) == 1
    else:
        with pytest.raises(GateError) as failed:
            judge([parse(requirement)], {"auc": value}, LIVE)
        assert failed.value.exit_code == ExitCode.GATE


def test_what_was_met_is_told_with_what_was_measured() -> None:
    metrics = {"auc": 0.9130001, "load_ms": 99.5, "peak_bytes": 123456789.0}
    texts = ["auc>=0.8", "auc >= champion-0.01", "load_ms<champion*1.2", "peak_bytes<200000000"]
    assert judge([parse(text) for text in texts], metrics, LIVE) == (
        "auc 0.913 >= 0.8",
        "auc 0.913 >= 0.89 (champion-0.01, fraud@3 has 0.9)",
        "load_ms 99.5 < 120 (champion*1.2, fraud@3 has 100)",
        "peak_bytes 123456789 < 200000000",
    )


def test_every_requirement_is_told_when_one_is_not_met() -> None:
    with pytest.raises(GateError) as failed:
        judge([parse("auc>=0.95"), parse("f1>=0.5"), parse("load_ms<1")], {"auc": 0.9, "f1": 0.6, "load_ms": 2.0}, LIVE)
    assert failed.value.message.splitlines() == [
        "2 of 3 requirements are not met, nothing was published",
        "  NOT MET  auc 0.9 >= 0.95",
        "  met      f1 0.6 >= 0.5",
        "  NOT MET  load_ms 2 < 1",
    ]


def test_values_that_look_alike_are_told_apart() -> None:
    with pytest.raises(GateError, match=r"auc 0\.79999999 >= 0\.8"):
        judge([parse("auc>=0.8")], {"auc": 0.79999999}, NO_CHAMPION)


def test_with_no_champion_yet_there_is_nothing_to_fall_behind() -> None:
    assert judge([parse("auc>=champion-0.01")], {"auc": 0.5}, NO_CHAMPION) == (
        "auc 0.5 >= champion-0.01 (no champion yet)",
    )


def test_a_metric_nobody_stated_or_measured_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(UsageError, match="'f1', which was neither stated nor measured") as refused:
        judge([parse("f1>=0.8")], {"auc": 0.9}, NO_CHAMPION)
    assert "--metric f1=VALUE" in (refused.value.hint or "")
    assert "known are auc" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="measured: there is one class only"):
        judge([parse("auc>=0.8")], {}, NO_CHAMPION, missing={"auc": "there is one class only"})


def test_a_champion_without_the_metric_is_an_error_that_says_how_to_measure_it() -> None:
    with pytest.raises(UsageError, match="'f1' of the champion, and fraud@3 has none in its manifest") as refused:
        judge([parse("f1>=champion")], {"f1": 0.9}, LIVE)
    assert "--evaluate" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="'run_ms' of the champion") as refused:
        judge([parse("run_ms<champion*2")], {"run_ms": 3.0}, LIVE)
    assert "not probed" in (refused.value.hint or "")


def test_what_the_smoke_run_took_can_be_required() -> None:
    assert probe_metrics(LoadProbe(1.5, 2.5, 1024), 77) == {
        "size_bytes": 77.0,
        "load_ms": 1.5,
        "run_ms": 2.5,
        "peak_bytes": 1024.0,
    }
    assert set(probe_metrics(LoadProbe(1.5, 2.5, 1024), 77)) == PROBED
    assert probe_metrics(None, 77) == {"size_bytes": 77.0}
