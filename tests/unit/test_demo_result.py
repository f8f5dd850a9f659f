"""From what was played and read to the figures, the verdict and the report."""

from __future__ import annotations

import io
import re
import signal
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from modelcast.cli.output import to_json
from modelcast.demo import cli
from modelcast.demo.accounting import Flow, MonthAuc, Positions
from modelcast.demo.board import Board
from modelcast.demo.flights import Flights, read_flights
from modelcast.demo.interrupts import Interrupts, listening
from modelcast.demo.report import html, write_report
from modelcast.demo.result import DemoResult, Kind, Played, Read, ReleaseMade, measure
from modelcast.demo.scorer import Refused, WentLive, happening_of
from modelcast.demo.topics import DeadLetter, Events, Predictions
from modelcast.demo.view import live_table, print_result, watching
from modelcast.demo.year import Script
from modelcast.errors import MissingExtraError, UsageError

PER_MONTH = 40
MONTHS = (1, 2, 3)
MONTH_MS = 2000
START_MS = 1_000_000
POISON = DeadLetter(0, 3 * PER_MONTH, "InvalidJson", "no <JSON>", b"\x00\xff")


@pytest.fixture(scope="module")
def flights() -> Flights:
    return read_flights().sample(MONTHS, PER_MONTH)


@pytest.fixture
def result(flights: Flights) -> DemoResult:
    return measure(flights, played(), read(flights))


def played() -> Played:
    """v1 goes live for January's backlog, v3 after February, v1 again by rollback; v2 is refused."""
    return Played(
        releases=(
            ReleaseMade(1, START_MS + 2000, Kind.TRAINED, "trained on January", 0.9),
            ReleaseMade(2, START_MS + 3000, Kind.UNFIT, "needs wind_gust"),
            ReleaseMade(1, START_MS + 3100, Kind.ROLLBACK, "rolled back to v1"),
            ReleaseMade(3, START_MS + 4000, Kind.TRAINED, "trained on January to February", 0.91),
            ReleaseMade(1, START_MS + 5000, Kind.ROLLBACK, "rolled back to v1"),
        ),
        flows=tuple(Flow(START_MS + MONTH_MS * m, START_MS + MONTH_MS * (m + 1)) for m in range(3)),
        happenings=(
            WentLive(1, None, START_MS + 2260, 250.0, 30.0),
            Refused(2, "binding", "field 'wind_gust' is missing", START_MS + 3050),
            WentLive(3, 1, START_MS + 4160, 150.0, 30.0),
            WentLive(1, 3, START_MS + 5030, None, None),
        ),
        waited=PER_MONTH,
        seconds=6.5,
    )


def read(flights: Flights) -> Read:
    """Every flight predicted once, right in March and at random else, and one record of garbage behind them."""
    count = len(flights)
    at = np.arange(count)
    sources = Positions.of([0] * count, at.tolist())
    frozen = np.random.default_rng(1).random(count)
    live = np.where(flights.periods == 3, flights.late.astype(np.float64), frozen)
    times = START_MS + 2250 + at * (2 * MONTH_MS - 300) // count
    return Read(
        events=Events(Positions.of([0] * (count + 1), range(count + 1)), np.append(at, -1)),
        predictions=Predictions(sources, np.where(flights.periods == 3, 3, 1), live, times),
        dead_letters=(POISON,),
        frozen=frozen,
    )


def test_the_figures_are_those_of_the_run(result: DemoResult) -> None:
    described = result.describe()
    assert (described["events"], described["predictions"], described["dead_letters"]) == (121, 120, 1)
    assert (described["lost"], described["duplicated"]) == (0, 0)
    assert (described["swaps"], described["rejected"]) == (2, 1)
    assert described["publish_to_live_ms"] == {"median": 90.0, "max": 150.0}
    assert [month["month"] for month in described["auc_by_month"]] == [2, 3]
    assert described["auc_by_month"][0]["frozen"] == described["auc_by_month"][0]["live"]
    assert described["auc_by_month"][1]["live"] == 1.0
    assert result.versions == {1: 80, 3: 40}
    assert result.failures() == ()


def test_a_swap_is_timed_from_the_newest_release_of_its_version(result: DemoResult) -> None:
    first, second, back = result.went_live
    assert (first.before, first.publish_to_live_ms, first.at_s) == (None, 250.0, 2.25)
    assert (second.kind, second.publish_to_live_ms, second.at_s) == (Kind.TRAINED, 150.0, 4.15)
    # The scorer did not say how long: from the record to the line.
    assert (back.kind, back.publish_to_live_ms, back.at_s) == (Kind.ROLLBACK, 30.0, 5.03)
    assert second.gap_ms is not None
    assert second.gap_ms < 100


def test_a_lost_event_fails_the_run(flights: Flights) -> None:
    whole = read(flights)
    kept = whole.predictions
    fewer = Predictions(
        Positions(kept.sources.partitions[1:], kept.sources.offsets[1:]),
        kept.versions[1:], kept.scores[1:], kept.times_ms[1:],
    )  # fmt: skip
    result = measure(flights, played(), replace(whole, predictions=fewer))
    assert result.outcomes.lost == 1
    assert result.failures() == ("1 event without a prediction or dead letter",)


def test_a_duplicate_and_a_missing_dead_letter_fail_the_run(flights: Flights) -> None:
    whole = read(flights)
    twice = measure(flights, played(), replace(whole, dead_letters=(POISON, POISON)))
    assert [word for word in ("more than one", "2 dead letters") if word not in "; ".join(twice.failures())] == []
    none = measure(flights, played(), replace(whole, dead_letters=()))
    assert "0 dead letters where 1 event was poison" in none.failures()


def test_an_unfit_version_that_was_not_refused_fails_the_run(flights: Flights) -> None:
    story = played()
    accepted = replace(story, happenings=tuple(h for h in story.happenings if not isinstance(h, Refused)))
    (failure,) = measure(flights, accepted, read(flights)).failures()
    assert failure == "version 2, which no event fits, was not refused"


def test_live_models_that_are_no_better_fail_the_run(result: DemoResult) -> None:
    same = replace(result, auc=(MonthAuc(2, 0.9, 0.9, 10),))
    assert "is not above" in same.failures()[0]
    assert "is not above" in replace(result, auc=()).failures()[0]


def test_figures_without_a_value_are_null_in_json(result: DemoResult) -> None:
    described = replace(result, went_live=()).describe()
    assert '"publish_to_live_ms": {"median": null, "max": null}' in to_json(described)


class Links(HTMLParser):
    """Collects what a page would load, and the ids in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data", "action"} and value and not value.startswith("#"):
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)


def test_the_report_is_one_file_that_loads_nothing(result: DemoResult, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, result, [(1.0, "[bold]v1[/bold] released"), (2.0, "refused: a < b")])
    text = path.read_text()
    page = Links()
    page.feed(text)
    assert page.loads == []
    assert "url(http" not in text
    assert not {"script", "link", "iframe"} & page.tags
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<svg") == 3


def test_the_report_follows_light_and_dark(result: DemoResult) -> None:
    text = html(result, [])
    assert "prefers-color-scheme: dark" in text
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--live)" in drawings
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", drawings)


def test_the_report_escapes_what_others_wrote(result: DemoResult) -> None:
    text = html(result, [(2.0, "refused: a < b")])
    assert "no &lt;JSON&gt;" in text
    assert "a &lt; b" in text


def test_the_report_says_when_promises_did_not_hold(result: DemoResult) -> None:
    assert "Not as promised" not in html(result, [])
    assert "Not as promised" in html(replace(result, dead_letters=(), auc=(), went_live=()), [])


@pytest.mark.parametrize(
    ("line", "happening"),
    [
        (
            {"event": "live", "version": 1, "device": "cpu", "load_ms": 9.0, "release_to_live_ms": 40.0},
            WentLive(1, None, 7, 40.0, 9.0),
        ),
        (
            {"event": "swapped", "from": 1, "version": 2, "device": "cpu", "load_ms": 9.0, "release_to_live_ms": None},
            WentLive(2, 1, 7, None, 9.0),
        ),
        ({"event": "refused", "version": 3, "reason": "binding", "message": "m"}, Refused(3, "binding", "m", 7)),
        ({"event": "progress", "events": 3}, None),
        ({"event": "live"}, None),
        ({}, None),
    ],
)
def test_report_lines_of_the_scorer_become_happenings(
    line: dict[str, object], happening: WentLive | Refused | None
) -> None:
    assert happening_of(line, 7) == happening


def test_every_length_of_the_story_has_all_its_parts() -> None:
    for months in range(3, 13):
        script = Script(months)
        assert 1 < script.poison_month <= months
        assert 2 < script.unfit_month <= months
        assert 2 < script.rollback_month <= months
    with pytest.raises(UsageError, match="can't play 2 months"):
        Script(2)


def test_a_signal_is_remembered_and_raised_where_it_may() -> None:
    interrupts = Interrupts()
    interrupts.handle(signal.SIGINT, None)
    interrupts.handle(signal.SIGTERM, None)
    assert interrupts.number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    with pytest.raises(KeyboardInterrupt):
        interrupts.sleep(0)


def test_within_at_once_a_signal_strikes_where_it_comes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    reached = []

    def work() -> None:
        with listening() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            reached.append("remembered only")
            interrupts.number = None
            with interrupts.at_once():
                signal.raise_signal(signal.SIGTERM)
                reached.append("too far")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["remembered only"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_board_counts_and_keeps_what_was_noted() -> None:
    said: list[str] = []
    board = Board(lambda _at_s, text: said.append(text))
    board.live(1, swapped=False)
    board.live(2, swapped=True)
    board.counted(predictions=5, dead_letters=1)
    board.counted(predictions=5)
    board.note("hello")
    now = board.snapshot()
    assert (now.live, now.swaps, now.predictions, now.dead_letters) == (2, 1, 10, 1)
    assert now.events_per_s > 0
    assert said == ["hello"]
    assert [text for _, text in board.notes] == ["hello"]


def test_the_live_table_shows_every_month_and_what_is_released_but_not_live_yet() -> None:
    board = Board()
    console = Console(width=120, force_terminal=True, color_system=None)
    for month in range(13):
        board.doing("flights [depart]", month=month)
        board.released(month)
        board.note(f"[bold]v{month}[/bold] released")
        with console.capture() as shown:
            console.print(live_table(board))
        assert "flights [depart]" in shown.get()
        assert f"v{month} released" in shown.get()
    assert "none yet ← v12" in shown.get()


def test_without_a_terminal_notes_are_plain_lines() -> None:
    console = Console(file=io.StringIO(), width=80)
    with watching(console) as board:
        board.note("[bold]v1[/bold] released")
    assert isinstance(console.file, io.StringIO)
    assert re.fullmatch(r" +\d+\.\d s  v1 released\n", console.file.getvalue())


def test_the_tables_at_the_end_hold_the_figures(result: DemoResult) -> None:
    console = Console(width=120)
    with console.capture() as shown:
        print_result(console, result)
    for words in ("121", "March", "1.0000", "v1 → v3", "rollback", "wind_gust", "InvalidJson"):
        assert words in shown.get()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(MissingExtraError, match="matplotlib") as caught:
        cli._check_packages()
    assert "pip install 'modelcast[demo]'" in (caught.value.hint or "")


def test_a_report_that_could_not_be_written_is_refused_before_the_play(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        cli._check_report(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        cli._check_report(tmp_path / "missing" / "report.html")
