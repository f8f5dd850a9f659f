"""The report's plots as SVG elements that take their colours from the page, so that they follow light and dark.

matplotlib writes fixed colours. Here it is given placeholder colours, which are replaced by the page's CSS variables
afterwards; text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from modelcast.demo import EXTRA_HINT
from modelcast.demo.result import DemoResult, Kind, Swap
from modelcast.errors import MissingExtraError

# Placeholder -> CSS variable of the page.
COLOURS: Final[Mapping[str, str]] = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--grid",
    "#040404": "--live",
    "#050505": "--frozen",
    "#060606": "--alert",
    "#070707": "--band",
}
INK, MUTED, GRID, LIVE, FROZEN, ALERT, BAND = COLOURS
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WIDTH_IN: Final = 8.6
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def auc_plot(result: DemoResult) -> str:
    """AUC by month, the frozen model against the live one."""
    with _figure("auc", 3.1) as (figure, axes):
        months = [month.month for month in result.auc]
        frozen, live = [m.frozen for m in result.auc], [m.live for m in result.auc]
        axes.fill_between(months, frozen, live, color=LIVE, alpha=0.12, linewidth=0)
        axes.plot(months, frozen, color=FROZEN, linewidth=2, linestyle=(0, (4, 2)), marker="o", markersize=4)
        axes.plot(months, live, color=LIVE, linewidth=2.4, marker="o", markersize=5)
        axes.set_xticks(months, [_MONTHS[month - 1] for month in months])
        axes.set_xlim(months[0] - 0.3, months[-1] + 1.1)
        low, high = min(frozen + live), max(frozen + live)
        room = max(high - low, 0.002)
        axes.set_ylim(low - 0.15 * room, high + 0.15 * room)
        apart = 0.07 * room
        above, below = (live[-1], frozen[-1]) if live[-1] >= frozen[-1] else (frozen[-1], live[-1])
        middle, spread = (above + below) / 2, max((above - below) / 2, apart)
        for value, name, colour in ((live[-1], "live", LIVE), (frozen[-1], "frozen", FROZEN)):
            at = middle + spread if value == above and (above != below or name == "live") else middle - spread
            axes.text(months[-1] + 0.2, at, name, color=colour, va="center", fontweight="bold")
        axes.set_ylabel("area under the ROC curve")
        return _svg(figure)


def throughput_plot(result: DemoResult) -> str:
    """Predictions a second over time, swaps marked, behind it when the feeder was sending."""
    with _figure("throughput", 3.3) as (figure, axes):
        at_s, rates = result.throughput
        for start, end in result.stretches:
            axes.axvspan(start, end, color=BAND, alpha=1, linewidth=0)
        axes.fill_between(at_s, rates, color=LIVE, alpha=0.25, linewidth=0, step="mid")
        axes.step(at_s, rates, color=LIVE, linewidth=1.2, where="mid")
        top = float(rates.max()) if len(rates) else 1.0
        axes.set_ylim(0, top * 1.18)
        axes.set_xlim(-0.5, (float(at_s[-1]) if len(at_s) else 1.0) + 0.5)
        for swap in result.went_live:
            colour = ALERT if swap.kind is Kind.ROLLBACK else INK
            axes.axvline(swap.at_s, color=colour, linewidth=1.1, linestyle=(0, (2, 2)))
            axes.text(swap.at_s, top * 1.19, f"v{swap.version}", color=colour, ha="center", va="bottom", fontsize=9.5)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k" if value else "0")
        axes.set_xlabel("seconds since the first event")
        axes.set_ylabel("predictions a second")
        axes.grid(visible=False, axis="x")
        return _svg(figure)


def swap_plot(result: DemoResult) -> str:
    """Publish-to-live time and longest gap of each swap."""
    swaps = result.swaps
    with _figure("swaps", 0.9 + 0.36 * max(2, len(swaps))) as (figure, axes):
        rows = np.arange(len(swaps))[::-1]
        _bars(axes, rows + 0.19, [swap.publish_to_live_ms for swap in swaps], LIVE)
        _bars(axes, rows - 0.19, [swap.gap_ms or 0.0 for swap in swaps], FROZEN)
        axes.set_yticks(rows, [_swap_name(swap) for swap in swaps])
        axes.set_xlabel("milliseconds")
        axes.grid(visible=False, axis="y")
        axes.margins(y=0.02)
        return _svg(figure)


def _bars(axes: Any, rows: Any, values: Sequence[float], colour: str) -> None:
    bars = axes.barh(rows, values, height=0.34, color=colour)
    axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=4, color=MUTED, fontsize=8.5)


def _swap_name(swap: Swap) -> str:
    return f"v{swap.before} → v{swap.version}" + (" (rollback)" if swap.kind is Kind.ROLLBACK else "")


@contextmanager
def _figure(name: str, height_in: float) -> Iterator[tuple[Any, Any]]:
    """A figure with one set of axes in the report's style, drawn without any display."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the plots take matplotlib, which is not installed", hint=EXTRA_HINT) from error
    # Ids within the drawing are hashes of this: two drawings on one page must not share them.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for placeholder, variable in COLOURS.items():
        text = text.replace(placeholder, f"var({variable})")
    return text
