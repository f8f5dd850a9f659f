"""What `score` prints: every report as one JSON line, and as words."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import onnxruntime
import pytest
from rich.markup import render

from modelcast.cli.output import to_json
from modelcast.consumer.cli import _Signals
from modelcast.consumer.report_text import as_json, as_text
from modelcast.consumer.reports import (
    ModelStats,
    Progressed,
    Recovering,
    Refused,
    Report,
    ScorerStats,
    Started,
    Stopped,
    Swapped,
    Waiting,
    Warned,
    WentLive,
)
from modelcast.consumer.scorer import Scorer
from modelcast.errors import MissingExtraError, UsageError
from modelcast.names import ModelVersion

V1, V2 = ModelVersion("fraud", 1), ModelVersion("fraud", 2)
STATS = ScorerStats(events=12_345, predictions=12_340, dead_letters=5, swaps=1, events_per_s=99.96, live=V2, lag=1_234)

SEVERAL = ScorerStats(events=9, models=(ModelStats("fraud", V2, 8, 1), ModelStats("churn@3")))

REPORTS: dict[str, Report] = {
    "started": Started("fraud", "events", "scores", "scores.dead-letters", "g", "host-0", "exactly-once", 4),
    "warning": Warned("topic 'scores' deletes"),
    "waiting": Waiting("no version is live"),
    "live": WentLive(V1, "cpu", 12.5, None),
    "swapped": Swapped(V1, V2, "cuda:0", 12.5, 800.0),
    "refused": Refused(V2, "binding", "field 'weight' [long] is missing"),
    "recovering": Recovering("no answer"),
    "progress": Progressed(STATS),
    "stopped": Stopped(STATS, 1.5, {0: 3, 1: 4}),
}


@pytest.mark.parametrize("name", REPORTS)
def test_each_report_is_one_json_line_that_says_what_it_is(name: str) -> None:
    line = json.loads(to_json(as_json(REPORTS[name])))
    assert line["event"] == name


@pytest.mark.parametrize("name", REPORTS)
def test_each_report_is_one_line_of_words(name: str) -> None:
    text = render(as_text(REPORTS[name])).plain
    assert text
    assert "\n" not in text


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this runtime has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_the_runtime_can_never_use_is_refused_at_once(device: str) -> None:
    with pytest.raises(MissingExtraError, match=f"{device!r} is asked for.*no CUDA.*modelcast\\[gpu\\]"):
        Scorer("fraud", "events", "scores", device=device, bootstrap_servers="127.0.0.1:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "CPU"])
def test_a_device_nobody_knows_is_a_usage_error(device: str) -> None:
    with pytest.raises(UsageError, match=f"{device!r} is not known"):
        Scorer("fraud", "events", "scores", device=device, bootstrap_servers="127.0.0.1:1")


@pytest.mark.parametrize("options", [{"max_stale_s": 0}, {"when_stale": "panic"}, {"preserve": "both"}])
def test_words_and_times_that_say_nothing_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Scorer("fraud", "events", "scores", bootstrap_servers="127.0.0.1:1", **options)


@pytest.mark.parametrize("name", ["registry", "schemas", "blobs", "status"])
def test_no_scorer_writes_to_or_reads_a_topic_of_the_repository(name: str) -> None:
    with pytest.raises(UsageError, match=f"'team.{name}' belongs to the repository"):
        Scorer("fraud", "events", f"team.{name}", prefix="team", bootstrap_servers="127.0.0.1:1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly_while_it_still_starts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with _Signals() as signals:
        signal.raise_signal(number)
        assert signals.stopped
    assert signal.getsignal(number) is before


def test_a_signal_stops_the_scorer() -> None:
    stops: list[str] = []
    with _Signals() as signals:
        signals.stop_with(lambda: stops.append("stop"))
        assert not signals.stopped
        signal.raise_signal(signal.SIGTERM)
    assert stops == ["stop"]


def test_the_figures_are_in_the_lines_that_end_and_accompany_a_run() -> None:
    assert as_json(REPORTS["stopped"]) == {
        "event": "stopped", "events": 12_345, "predictions": 12_340, "dead_letters": 5, "swaps": 1, "recoveries": 0,
        "events_per_s": 100.0, "live": 2, "lag": 1_234, "seconds": 1.5, "left": 7,
    }  # fmt: skip


class TestSeveralModels:
    STARTED = Started(
        "fraud,churn@3", "events", "A,B", "events.dead-letters", "g", "host-0", "exactly-once", 4,
        {"fraud": "A", "churn@3": "B"}, "country",
    )  # fmt: skip

    def test_the_start_says_where_each_one_s_predictions_go_and_how_events_are_routed(self) -> None:
        line = as_json(self.STARTED)
        assert (line["topics"], line["route"]) == ({"fraud": "A", "churn@3": "B"}, "country")
        assert "events by country with fraud → A, churn@3 → B, exactly-once" in render(as_text(self.STARTED)).plain

    def test_the_start_of_one_model_says_nothing_of_others(self) -> None:
        assert not {"topics", "route"} & as_json(REPORTS["started"]).keys()

    def test_figures_are_told_for_each(self) -> None:
        assert as_json(Progressed(SEVERAL))["models"] == {
            "fraud": {"live": 2, "predictions": 8, "dead_letters": 1},
            "churn@3": {"live": None, "predictions": 0, "dead_letters": 0},
        }
        assert "fraud@2 churn@3 not live" in render(as_text(Progressed(SEVERAL))).plain

    def test_news_name_their_model(self) -> None:
        assert [as_json(REPORTS[name])["model"] for name in ("live", "swapped", "refused")] == ["fraud"] * 3


def test_the_guarantee_is_said_at_the_start() -> None:
    assert "exactly-once" in as_text(REPORTS["started"])
    assert as_json(REPORTS["started"])["guarantee"] == "exactly-once"


def test_what_a_message_quotes_is_not_markup() -> None:
    assert "[long]" in render(as_text(REPORTS["refused"])).plain


def test_ctrl_c_in_the_middle_of_a_query_is_handled_like_any_other() -> None:
    script = """
import os, signal, threading
from modelcast.consumer.cli import _Signals
stopped = []
with _Signals() as signals:
    import polars
    signals.stop_with(lambda: stopped.append(1))
    column = polars.DataFrame({"a": range(2_000_000)}).lazy()
    query = column.select(polars.col("a").cast(polars.String).sort().str.len_chars().sum())
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    while not stopped:
        query.collect()
print("stopped")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "stopped\n"), ended.stderr
