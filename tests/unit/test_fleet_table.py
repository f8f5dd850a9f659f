"""What people see of a fleet: in 80 and 160 columns, in a pipe, on a small terminal; and what programs see."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from modelcast.cli.durations import age
from modelcast.cli.output import to_json
from modelcast.fleet.describe import describe_fleet
from modelcast.fleet.fleet import Fleet, Roster
from modelcast.fleet.live import live_view
from modelcast.fleet.table import fleet_table, problem_lines, summary, versions
from modelcast.records import InstanceStatus, ModelState

from .fleet_records import NOW_MS, model, record, refusal, status

SCORER = "modelcast.fraud.fraud-scores/web-"


def fleet_of(*statuses: InstanceStatus) -> Fleet:
    roster = Roster()
    for said in statuses:
        roster.replay(record(said), said.at_ms)
    return roster.fleet(NOW_MS)


FLEET = fleet_of(
    status(
        SCORER + "0",
        model(load_ms=43.2, events=1_000_000, events_per_s=12_345.6, lag=0, dead_letters=3),
        started_ms=NOW_MS - 90_000,
    ),
    status(
        SCORER + "1",
        model(version=6, load_ms=1430.0, events_per_s=10.0, lag=123_456, next_version=7, next_state="fetching"),
        device="cuda:0",
    ),
    status(
        "client-api-7f9c5d-4711-1",
        model(version=6, wanted_version=7, refusals=(refusal(7),)),
        model("churn-de", None, pinned=2, state=ModelState.IDLE),
        model("churn-fr", version=1, stale=True),
        host="api-7f9c5d",
        role="client",
    ),
    status("client-api-7f9c5e-99-1", model(), host="api-7f9c5e", at_ms=NOW_MS - 45_000),
    status("client-old-1-1", model(version=None, state=ModelState.STOPPED), ended=True, at_ms=NOW_MS - 300_000),
    status("client-idle-1-1"),
)


def drawn(fleet: Fleet, width: int | None, **options: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width or 1_000)
    console.print(fleet_table(fleet, width, **options))  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def row(lines: list[str], *words: str) -> str:
    (found,) = [line for line in lines if all(word in line for word in words)]
    return found


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, None])
def test_every_model_of_every_instance_has_one_line_that_fits(width: int | None) -> None:
    lines = drawn(FLEET, width)
    assert len(lines) == 1 + 8
    assert width is None or all(len(line) <= width for line in lines)


def test_in_160_columns_all_is_told() -> None:
    lines = drawn(FLEET, 160)
    header = "MODEL VERSION STATE SINCE LOAD EVENTS/S LAG DEAD INSTANCE HOST ROLE DEVICE"
    assert lines[0].split() == header.split()
    told = ["fraud", "7", "live", "1 min", "43 ms", "12,346", "0", "3", SCORER + "0", "web", "scorer", "cpu"]
    assert row(lines, SCORER + "0").split() == " ".join(told).split()
    assert "live, fetching 7" in row(lines, SCORER + "1")


def test_in_80_columns_what_matters_is_told_and_names_keep_their_ends() -> None:
    lines = drawn(FLEET, 80)
    assert {"MODEL", "VERSION", "STATE", "EVENTS/S", "LAG", "INSTANCE"} <= set(lines[0].split())
    assert "123,456" in row(lines, "fetching 7")
    assert row(lines, "fetching 7").endswith("web-1")


def test_in_a_pipe_nothing_is_cut() -> None:
    assert not any("…" in line for line in drawn(FLEET, None))


def test_who_is_not_there_is_told_with_when_it_was_and_what_it_ran() -> None:
    lines = drawn(FLEET, 160)
    assert row(lines, "7f9c5e").split()[:2] == ["fraud", "7"]
    assert "lost 45 s ago" in row(lines, "7f9c5e")
    assert "stopped 5 min ago" in row(lines, "client-old")


def test_who_stopped_stands_below_who_runs() -> None:
    ended = status("a-1", model("churn"), ended=True, at_ms=NOW_MS - 60_000)
    lines = drawn(fleet_of(ended, status("b-1", model("fraud"))), None)
    assert lines.index(row(lines, "b-1")) < lines.index(row(lines, "a-1"))


def test_states_say_what_is_odd() -> None:
    lines = drawn(FLEET, 160)
    assert "live, stale" in row(lines, "churn-fr")
    assert "live, 7 refused" in row(lines, "fraud", "client-api-7f9c5d")
    assert "idle" in row(lines, "churn-de@2")
    assert row(lines, "client-idle").split()[:2] == ["-", "running"]


def test_where_rows_do_not_fit_those_with_problems_come_first_and_the_rest_is_counted() -> None:
    lines = drawn(FLEET, 160, max_rows=4)
    assert len(lines) == 1 + 4
    assert {line.split()[0] for line in lines[1:4]} == {"fraud", "churn-fr"}
    assert lines[-1] == "… and 5 more rows"


def test_the_summary_counts() -> None:
    assert summary(FLEET).plain == "4 running, 1 lost, 1 stopped"
    assert summary(fleet_of()).plain == "nobody"


def test_each_model_is_summed_over_those_that_run() -> None:
    assert [line.plain for line in versions(FLEET)] == [
        "churn-de  none on 1",
        "churn-fr  1 on 1",
        "fraud  7 on 1, 6 on 2  12,356 events/s  lag 123,456",
    ]


def test_what_is_wrong_on_many_is_told_once() -> None:
    many = fleet_of(*(status(f"i{number}", model(refusals=(refusal(8),))) for number in range(5)))
    (line,) = problem_lines(many.problems())
    assert line.plain == "refused     fraud@8 (golden) on i0, i1, i2 and 2 more: version 8 is not right"


def test_problems_are_counted_where_they_do_not_fit() -> None:
    many = fleet_of(*(status(f"i{number}", model(refusals=(refusal(8 + number),))) for number in range(5)))
    assert [line.plain[:10] for line in problem_lines(many.problems(), 3)][-1] == "… and 3 mo"


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (7_199, "1 h"), (172_800, "2 d")]
)
def test_ages_have_one_unit(seconds: float, words: str) -> None:
    assert age(seconds * 1000) == words


@pytest.mark.parametrize("height", [6, 12, 24, 50])
@pytest.mark.parametrize("away_ms", [None, NOW_MS - 5_000])
def test_the_live_view_fits_the_terminal(height: int, away_ms: int | None) -> None:
    console = Console(file=io.StringIO(), width=80, height=height)
    lines = console.render_lines(live_view(FLEET, "localhost:9092  modelcast", away_ms, console), pad=False)
    texts = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert len(texts) <= max(height, 9)
    assert "4 running" in texts[0]
    assert away_ms is None or "has not answered since" in texts[1]


def test_what_others_wrote_moves_no_cursor() -> None:
    evil = fleet_of(status("evil\x1b[2J", model(refusals=(refusal(8, "\x1b]0;x\x07"),)), host="\r\n"))
    text = "\n".join([*drawn(evil, None), *(line.plain for line in problem_lines(evil.problems()))])
    assert text.replace("\n", "").isprintable()
    assert "\\x1b[2J" in text


def test_markup_in_a_name_is_a_name() -> None:
    assert "[red]x[/red]" in row(drawn(fleet_of(status("[red]x[/red]", model())), None), "fraud")


def test_programs_get_everything() -> None:
    told = json.loads(to_json(describe_fleet(FLEET)))
    assert [instance["state"] for instance in told["instances"]] == [
        "running", "lost", "running", "stopped", "running", "running",
    ]  # fmt: skip
    scorer = next(instance for instance in told["instances"] if instance["instance"] == SCORER + "1")
    assert (scorer["host"], scorer["role"], scorer["device"]) == ("web", "scorer", "cuda:0")
    (entry,) = scorer["models"]
    assert {key: entry[key] for key in ("model", "version", "state", "next_version", "next_state", "lag")} == {
        "model": "fraud", "version": 6, "state": "live", "next_version": 7, "next_state": "fetching", "lag": 123_456,
    }  # fmt: skip
    assert [problem["kind"] for problem in told["problems"]] == ["refused", "stale", "lost"]
    assert told["problems"][0]["instance"] == "client-api-7f9c5d-4711-1"


def test_the_manual_names_every_field_that_programs_get() -> None:
    manual = (Path(__file__).parents[2] / "docs/OPERATING.md").read_text()
    told = describe_fleet(FLEET)
    models = [model for instance in told["instances"] for model in instance["models"]]
    refusals = [refused for entry in models for refused in entry["refusals"]]
    for value in (told, *told["instances"], *told["problems"], *models, *refusals):
        for name in value:
            assert f"`{name}`" in manual, name
