"""docs/RELIABILITY.md, from the promises, their tests and what these told. The same three make the same page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from .promises import ROOT, Promise
from .proofs import Proof
from .results import FAILED, PASSED, Result

PAGE: Final = ROOT / "docs" / "RELIABILITY.md"

_INTRODUCTION: Final = """\
# What is promised, and how it is tested

Each row is a promise: what goes wrong, and what must come of it. Each has tests named by its number, on a real Kafka
broker wherever a broker has a part in it, with processes that are really killed. What was lost, doubled or put out of
order is judged from the topics by a program that shares no code with the scorers (`tests/faults/oracle.py`).

This page is made from `tests/matrix.toml`, the names of the tests, and what these told when they last ran
(`tests/reliability/results.json`); no figure is typed by hand.

    make reliability                # runs all of them, notes what they tell, writes this page
    make reliability ROWS="27 28"   # of these rows
    python -m tests.reliability     # writes the page from what was noted

"""


def render(rows: Sequence[Promise], tests: Mapping[int, Sequence[Proof]], results: Mapping[str, Result]) -> str:
    """The page's text.

    Args:
        rows: All promises, in their order.
        tests: Row number → its tests.
        results: Test id → what it last told.
    """
    parts = list(dict.fromkeys(row.part for row in rows))
    lines = [_summary(rows, tests, results), ""]
    for part in parts:
        lines += [f"## {part}", "", "| № | what goes wrong | what must come of it | last figure |", "|---|---|---|---|"]
        for row in rows:
            if row.part == part:
                found = tests.get(row.number, ())
                figure = _figure(found, results)
                lines.append(f"| [{row.number}](#row-{row.number}) | {row.fault} | {row.promise} | {figure} |")
        lines.append("")
    lines += ["## The tests of each row", ""]
    for row in rows:
        lines += [*_row(row, tests.get(row.number, ()), results), ""]
    return _INTRODUCTION + "\n".join(lines).rstrip() + "\n"


def _summary(rows: Sequence[Promise], tests: Mapping[int, Sequence[Proof]], results: Mapping[str, Result]) -> str:
    every = {proof.id: proof for found in tests.values() for proof in found}
    told = [results[test] for test in every if test in results]
    ran = [result for result in told if result.outcome == PASSED]
    failed = sum(result.outcome == FAILED for result in told)
    brokers = sum("broker" in proof.kinds for proof in every.values())
    dates = sorted(result.date for result in ran)
    between = "" if not dates else f" ({dates[0]})" if dates[0] == dates[-1] else f" ({dates[0]} to {dates[-1]})"
    cases = sum(result.cases for result in ran)
    return (
        f"{len(rows)} rows, {_count(len(every), 'test')}, {brokers} of them with a real broker. Last runs{between}: "
        f"{len(ran)} passed, {cases:,} cases, {failed} failed, {len(every) - len(ran) - failed} skipped or not noted."
    )


def _figure(found: Sequence[Proof], results: Mapping[str, Result]) -> str:
    told = [results[proof.id] for proof in found if proof.id in results]
    ran = [result for result in told if result.outcome != "skipped"]
    if not ran:
        return f"skipped: {_cell(told[0].reason)}" if told else "not noted yet"
    sentences = [f"{_count(len(ran), 'test')}, {_count(sum(result.cases for result in ran), 'case')}"]
    counts: dict[str, int] = {}
    for result in ran:
        for name, count in (result.counts or {}).items():
            counts[name] = counts.get(name, 0) + count
    if counts:
        sentences.append(_counts(counts))
    sentences += dict.fromkeys(_cell(figure) for result in ran for figure in result.figures)
    failed = sum(result.outcome == FAILED for result in ran)
    if failed:
        sentences.insert(0, f"**{failed} failed**")
    return "<br>".join(sentences)


def _row(row: Promise, found: Sequence[Proof], results: Mapping[str, Result]) -> list[str]:
    lines = [f'<a id="row-{row.number}"></a>', f"**{row.number} · {row.fault}.** {row.promise}", ""]
    lines += [f"- [`{proof.name}`](../{proof.path}){_marks(proof)}: {_told(results.get(proof.id))}" for proof in found]
    if row.without:
        lines.append(f"- Not shown here: {row.without}")
    return lines


def _marks(proof: Proof) -> str:
    marks = [
        word
        for kind, word in (("broker", "real broker"), ("property", "drawn at random"), ("gpu", "GPU"))
        if kind in proof.kinds
    ]
    return f" ({', '.join(marks)})" if marks else ""


def _told(result: Result | None) -> str:
    if result is None:
        return "not noted yet"
    if result.outcome != PASSED:
        return f"{result.outcome} {result.date}: {_cell(result.reason)}"
    cases = "" if result.cases == 1 else f", {result.cases:,} cases"
    said = [_counts(result.counts)] if result.counts else []
    said += map(_cell, result.figures)
    # Each row's own command is on the page's head; one that makes a test larger than by default is not.
    said += [f"by `{result.command}`"] if result.command.startswith("MODELCAST_") else []
    return "; ".join([f"passed {result.date}{cases}, {result.seconds:g} s", *said])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cell(text: str) -> str:
    """Foreign text as one line of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def write(text: str, page: Path = PAGE) -> None:
    """Puts it in its place."""
    page.write_text(text, encoding="utf-8")
