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
            line = {"event": "started", **asdict(report)}
            return line if report.topics else {name: line[name] for name in line if name not in ("topics", "route")}
        case Warned():
            return {"event": "warning", "message": report.message}
        case Waiting():
            return {"event": "waiting", "reason": report.reason}
        case WentLive():
            version = report.version
            return {"event": "live", "model": version.name, "version": version.version, **_load(report)}
        case Swapped():
            old, new = report.old, report.new
            versions = {"from": old.version, "version": new.version}
            return {"event": "swapped", "model": new.name, **versions, **_load(report)}
        case Refused():
            return {
                "event": "refused",
                "model": report.version.name,
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
            models = [f"[bold]{escape(model)}[/bold] → {escape(topic)}" for model, topic in _topics(report).items()]
            chosen = "" if report.route is None else f" by {escape(report.route)}"
            return (
                f"Scoring [bold]{escape(report.events)}[/bold]{chosen} with {', '.join(models)}, {report.guarantee} "
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
                f"[dim]{_live(stats)}  {stats.events:,} events  {stats.events_per_s:,.0f}/s  "
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


def _topics(report: Started) -> Mapping[str, str]:
    return report.topics or {report.model: report.predictions}


def _live(stats: ScorerStats) -> str:
    if not stats.models:
        return str(stats.live or "no version live")
    return " ".join(str(model.live or f"{model.model} not live") for model in stats.models)


def _times(report: WentLive | Swapped) -> str:
    after = report.release_to_live_ms
    released = "" if after is None else f", {after / 1000:.2f} s after its release"
    return f" [dim](loaded in {report.load_ms:.0f} ms{released})[/dim]"


def _figures(stats: ScorerStats) -> Mapping[str, Any]:
    figures: dict[str, Any] = {
        "events": stats.events,
        "predictions": stats.predictions,
        "dead_letters": stats.dead_letters,
        "swaps": stats.swaps,
        "recoveries": stats.recoveries,
        "events_per_s": round(stats.events_per_s, 1),
        "live": None if stats.live is None else stats.live.version,
        "lag": stats.lag,
    }
    if stats.models:
        figures["models"] = {
            entry.model: {
                "live": None if entry.live is None else entry.live.version,
                "predictions": entry.predictions,
                "dead_letters": entry.dead_letters,
            }
            for entry in stats.models
        }
    return figures
