"""What a scorer tells, as JSON lines and as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from .reports import (
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


def as_json(report: Report) -> Mapping[str, Any]:  # noqa: PLR0911 - one a kind of report
    """A report as one JSON line."""
    match report:
        case Started():
            return {"event": "started", **asdict(report)}
        case Warned():
            return {"event": "warning", "message": report.message}
        case Waiting():
            return {"event": "waiting", "reason": report.reason}
        case WentLive():
            return {"event": "live", "version": report.version.version, **_load(report)}
        case Swapped():
            return {"event": "swapped", "from": report.old.version, "version": report.new.version, **_load(report)}
        case Refused():
            return {
                "event": "refused",
                "version": report.version.version,
                "reason": report.reason,
                "message": report.message,
            }
        case Recovering():
            return {"event": "recovering", "cause": report.cause}
        case Progressed():
            return {"event": "progress", **_figures(report.stats)}
        case Stopped():
            return {
                "event": "stopped",
                **_figures(report.stats),
                "seconds": round(report.seconds, 3),
                "left": None if report.left is None else sum(report.left.values()),
            }


def as_text(report: Report) -> str:  # noqa: PLR0911 - one a kind of report
    """A report for people, as rich markup."""
    match report:
        case Started():
            return (
                f"Scoring [bold]{escape(report.events)}[/bold] with [bold]{escape(report.model)}[/bold] → "
                f"{escape(report.predictions)}, {report.guarantee} "
                f"[dim](group {escape(report.group)}, instance {escape(report.instance)}, "
                f"dead letters {escape(report.dead_letters)})[/dim]"
            )
        case Warned():
            return escape(report.message)
        case Waiting():
            return f"[yellow]waiting[/yellow]  events stay in Kafka: {escape(report.reason)}"
        case WentLive():
            return f"[green]live[/green]     {report.version} on {report.device}{_times(report)}"
        case Swapped():
            return f"[green]swapped[/green]  {report.old} → {report.new} on {report.device}{_times(report)}"
        case Refused():
            what = report.version if report.version.version else report.version.name  # a release of unknown content
            return f"[red]refused[/red]  {what} ({report.reason}): {escape(report.message)}"
        case Recovering():
            return f"[yellow]recovering[/yellow]  back to the committed offsets: {escape(report.cause)}"
        case Progressed():
            stats = report.stats
            waiting = "" if stats.lag is None else f"lag {stats.lag:,}  "
            return (
                f"[dim]{stats.live or 'no version live'}  {stats.events:,} events  {stats.events_per_s:,.0f}/s  "
                f"{waiting}{stats.dead_letters:,} dead letters  {stats.swaps} swaps[/dim]"
            )
        case Stopped():
            stats = report.stats
            return (
                f"Scored {stats.events:,} events in {report.seconds:.1f} s: {stats.predictions:,} predictions, "
                f"{stats.dead_letters:,} dead letters, {stats.swaps} swaps"
            )


def _load(report: WentLive | Swapped) -> Mapping[str, Any]:
    return {"device": report.device, "load_ms": report.load_ms, "release_to_live_ms": report.release_to_live_ms}


def _times(report: WentLive | Swapped) -> str:
    after = report.release_to_live_ms
    released = "" if after is None else f", {after / 1000:.2f} s after its release"
    return f" [dim](loaded in {report.load_ms:.0f} ms{released})[/dim]"


def _figures(stats: ScorerStats) -> Mapping[str, Any]:
    return {
        "events": stats.events,
        "predictions": stats.predictions,
        "dead_letters": stats.dead_letters,
        "swaps": stats.swaps,
        "recoveries": stats.recoveries,
        "events_per_s": round(stats.events_per_s, 1),
        "live": None if stats.live is None else stats.live.version,
        "lag": stats.lag,
    }
