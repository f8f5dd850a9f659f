"""The page of promises: no row without a test that proves it, no figure that no run told, the page in step with both.

A new test of a row takes `python -m tests.reliability` to be on the page, and `make reliability ROWS=…` to have run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.reliability import page
from tests.reliability.__main__ import main, rendered
from tests.reliability.figures import counted, figure
from tests.reliability.promises import Promise, promises
from tests.reliability.proofs import Proof, of_rows, proofs, read_proofs
from tests.reliability.results import FAILED, PASSED, SKIPPED, Case, Result, load, merged, read_report, results_of, save

TELLING = Result(PASSED, 2, 1.5, "2026-01-02", "make reliability", ("took 3 s",), {"events": 1_000, "lost": 0})
KILLED = Promise(7, "Exactly once", "A scorer is killed", "Nothing is lost.", frozenset({"broker"}))


@pytest.fixture(scope="module")
def tests() -> dict[int, tuple[Proof, ...]]:
    return of_rows(proofs())


def test_every_row_has_a_test_and_every_tests_number_a_row(tests: dict[int, tuple[Proof, ...]]) -> None:
    assert {row.number for row in promises()} == set(tests)


@pytest.mark.parametrize("row", promises(), ids=lambda row: f"{row.number:02}")
def test_a_rows_tests_contain_what_the_row_asks_for(row: Promise, tests: dict[int, tuple[Proof, ...]]) -> None:
    there = frozenset[str]().union(*(proof.kinds for proof in tests[row.number]))
    assert row.proof <= there, f"row {row.number} has no test with {sorted(row.proof - there)}"


def test_nothing_stands_there_as_failed() -> None:
    failed = {test: result.reason for test, result in load().items() if result.outcome == FAILED}
    assert failed == {}, "mend it, and run its row again with `make reliability ROWS=…`"


def test_the_page_is_in_step() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == rendered(), "run `python -m tests.reliability`"


def test_a_row_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "99"]) == 2
    assert "no test has the number 99" in capsys.readouterr().err


def test_proofs_are_found_by_name_with_what_they_contain() -> None:
    source = (
        "from hypothesis import given\n"
        "class TestFrozen:\n"
        "    def test_f12_it_is_stale(self): pass\n"
        "@given(data())\n"
        "def test_f38_f44_damage(broker: LocalBroker): broker.kill()\n"
        "def test_fast(): pass\n"
        "def test_other(): pass\n"
    )
    frozen, damage = read_proofs("tests/broker/test_x.py", source)
    assert (frozen.id, frozen.rows) == ("tests/broker/test_x.py::TestFrozen::test_f12_it_is_stale", (12,))
    assert (damage.rows, damage.kinds) == ((38, 44), {"broker", "signals", "property"})
    (in_memory, _) = read_proofs("tests/unit/test_x.py", source)
    assert "broker" not in in_memory.kinds


def test_a_report_of_pytest_becomes_results(tmp_path: Path) -> None:
    suite = ElementTree.Element("testsuite")
    for parameter, said, child in (
        ("[a]", "counted: events=600 lost=0\nfigure: took 3 s\nnoise", None),
        ("[b]", "counted: events=400 lost=0\nfigure: took 3 s", None),
        ("[c]", "", "skipped"),
    ):
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "classname": "tests.faults.test_x.TestKills",
                "name": f"test_f07_it{parameter}",
                "file": "tests/faults/test_x.py",
                "time": "0.75" if child is None else "0",
            },
        )
        if child is None:
            ElementTree.SubElement(case, "system-out").text = said
        else:
            ElementTree.SubElement(case, child, {"message": "no\n device"})
    report = tmp_path / "report.xml"
    ElementTree.ElementTree(suite).write(report)
    found = results_of(read_report(report), date=TELLING.date, command=TELLING.command)
    assert found == {"tests/faults/test_x.py::TestKills::test_f07_it": TELLING}


def test_one_case_that_fails_makes_the_test_failed_with_its_reason() -> None:
    cases = [
        Case("t", PASSED, 1.0, "", ""),
        Case("t", FAILED, 1.0, "", "assert 1 == 2"),
        Case("t", SKIPPED, 0, "", "x"),
    ]
    result = results_of(cases, date="2026-01-02", command="c")["t"]
    assert (result.outcome, result.cases, result.reason) == (FAILED, 2, "assert 1 == 2")


def test_what_is_told_on_standard_output_is_what_a_report_is_read_for(capsys: pytest.CaptureFixture[str]) -> None:
    counted(events=1_000, lost=0)
    figure("took 3 s")
    told = results_of([Case("t", PASSED, 1.5, capsys.readouterr().out, "")], date="2026-01-02", command="c")["t"]
    assert (told.counts, told.figures) == (TELLING.counts, TELLING.figures)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert load(path) == {}
    silent = Result(SKIPPED, 0, 0.0, "2026-01-02", "c", reason="no device")
    save({"b": TELLING, "a": silent}, path)
    assert load(path) == {"a": silent, "b": TELLING}


def test_a_run_changes_what_it_ran_and_forgets_tests_that_are_gone() -> None:
    failed = replace(TELLING, outcome=FAILED)
    skipped = replace(TELLING, outcome=SKIPPED, reason="no device")
    assert merged({"a": TELLING, "gone": TELLING}, {"b": failed}, ["a", "b"]) == {"a": TELLING, "b": failed}
    assert merged({"a": TELLING}, {"a": failed}, ["a"]) == {"a": failed}
    assert merged({"a": TELLING}, {"a": skipped}, ["a"]) == {"a": TELLING}, "where it ran, it told more"
    assert merged({}, {"a": skipped}, ["a"]) == {"a": skipped}


def test_a_rows_figures_are_its_tests_together() -> None:
    first, second = (Proof("tests/faults/test_x.py", f"test_f07_{n}", (7,), frozenset({"broker"})) for n in "ab")
    text = page.render([KILLED], {7: [first, second]}, {first.id: TELLING, second.id: TELLING})
    assert "2 tests, 4 cases<br>2,000 events, 0 lost<br>took 3 s |" in text
    assert f"- [`{first.name}`](../tests/faults/test_x.py) (real broker): passed 2026-01-02, 2 cases, 1.5 s" in text


def test_a_figure_of_more_than_the_default_says_what_it_came_of() -> None:
    test = Proof("tests/faults/test_x.py", "test_f07_a", (7,), frozenset())
    scaled = replace(TELLING, command='MODELCAST_SWAPS=1000 make reliability ROWS="7"')
    assert '; by `MODELCAST_SWAPS=1000 make reliability ROWS="7"`' in page.render(
        [KILLED], {7: [test]}, {test.id: scaled}
    )


def test_a_failure_is_the_first_thing_that_is_said() -> None:
    test = Proof("tests/faults/test_x.py", "test_f07_a", (7,), frozenset())
    text = page.render([KILLED], {7: [test]}, {test.id: replace(TELLING, outcome=FAILED, reason="lost | 1")})
    assert "**1 failed**<br>" in text
    assert "failed 2026-01-02: lost \\| 1" in text


def test_what_did_not_run_is_not_passed_off_as_run() -> None:
    test = Proof("tests/gpu/test_x.py", "test_f07_a", (7,), frozenset({"gpu"}))
    row = replace(KILLED, without="It takes a device.")
    text = page.render([row], {7: [test]}, {})
    assert "| not noted yet |" in text
    assert "1 test, 0 of them with a real broker. Last runs: 0 passed, 0 cases, 0 failed, 1 skipped or" in text
    assert "- Not shown here: It takes a device." in text
    text = page.render([row], {7: [test]}, {test.id: replace(TELLING, outcome=SKIPPED, reason="no device")})
    assert "| skipped: no device |" in text
