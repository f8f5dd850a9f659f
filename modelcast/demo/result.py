"""The outcome of a run as values: what was played, what was measured, and whether the promises held. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from modelcast.demo.accounting import (
    Floats,
    Flow,
    Int64s,
    MonthAuc,
    Outcomes,
    Positions,
    Spread,
    account,
    auc_by_month,
    flight_of_each,
    live_scores,
    longest_gap_ms,
    throughput,
)
from modelcast.demo.flights import Flights
from modelcast.demo.scorer import Happening, Refused, WentLive
from modelcast.demo.topics import DeadLetter, Events, Predictions

# Fine enough to see a stall of a quarter of a second, coarse enough that single commits do not make a saw.
BUCKET_MS: Final = 250


class Kind(StrEnum):
    """Why there was a release."""

    TRAINED = "trained"
    UNFIT = "unfit"  # a model that needs what no event has
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class ReleaseMade:
    """One release of the play.

    Attributes:
        about: What the version is, or why it was released, in words.
        auc: What the publisher measured on flights held back; None for a rollback.
    """

    version: int
    created_ms: int
    kind: Kind
    about: str
    auc: float | None = None


@dataclass(frozen=True)
class Played:
    """What happened, as those who did it saw it."""

    releases: tuple[ReleaseMade, ...]
    flows: tuple[Flow, ...]
    happenings: tuple[Happening, ...]
    waited: int
    seconds: float


@dataclass(frozen=True)
class Read:
    """What lay on the topics at the end, and what the first version says of every flight."""

    events: Events
    predictions: Predictions
    dead_letters: tuple[DeadLetter, ...]
    frozen: Floats


@dataclass(frozen=True, slots=True)
class Swap:
    """One change of the live version.

    Attributes:
        before: The version before; None for the first one, which is no swap.
        at_s: Seconds since the feeder began.
        publish_to_live_ms: From the release record's creation until the version was live in the scorer.
        gap_ms: The longest gap between predictions around it; None for the first, and if nothing was being sent then.
    """

    version: int
    before: int | None
    kind: Kind
    at_s: float
    publish_to_live_ms: float
    gap_ms: float | None


@dataclass(frozen=True)
class DemoResult:
    """Every figure of one run.

    Attributes:
        throughput: Middle of each bucket in seconds since the feeder began, and predictions a second.
        stretches: When the feeder was sending, in the same seconds.
        versions: Predictions each version made.
        waited: Events that waited in Kafka for the first release.
        seconds: What the play took, without setting the stage and reading at the end.
    """

    outcomes: Outcomes
    went_live: tuple[Swap, ...]
    refused: tuple[Refused, ...]
    releases: tuple[ReleaseMade, ...]
    dead_letters: tuple[DeadLetter, ...]
    auc: tuple[MonthAuc, ...]
    throughput: tuple[Floats, Floats]
    stretches: tuple[tuple[float, float], ...]
    versions: Mapping[int, int]
    waited: int
    seconds: float

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The changes from one version to another."""
        return tuple(swap for swap in self.went_live if swap.before is not None)

    @property
    def publish_to_live_ms(self) -> Spread:
        return Spread.of([swap.publish_to_live_ms for swap in self.swaps])

    @property
    def longest_gap_ms(self) -> Spread:
        return Spread.of([swap.gap_ms for swap in self.swaps if swap.gap_ms is not None])

    @property
    def mean_auc(self) -> tuple[float, float]:
        """Mean over the months of the frozen model's and the live one's; NaN without months."""
        if not self.auc:
            return float("nan"), float("nan")
        return float(np.mean([month.frozen for month in self.auc])), float(np.mean([month.live for month in self.auc]))

    def describe(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "events": self.outcomes.events,
            "predictions": self.outcomes.predictions,
            "lost": self.outcomes.lost,
            "duplicated": self.outcomes.duplicated,
            "dead_letters": self.outcomes.dead_letters,
            "swaps": len(self.swaps),
            "rejected": len(self.refused),
            "publish_to_live_ms": _spread(self.publish_to_live_ms),
            "longest_gap_ms": _spread(self.longest_gap_ms),
            "auc_by_month": [
                {"month": month.month, "frozen": round(month.frozen, 4), "live": round(month.live, 4)}
                for month in self.auc
            ],
            "seconds": round(self.seconds, 1),
        }

    def failures(self) -> tuple[str, ...]:
        """Which promises did not hold, in words; none if all did."""
        told = []
        for count, what in (
            (self.outcomes.lost, "without a prediction or dead letter"),
            (self.outcomes.duplicated, "with more than one"),
        ):
            if count:
                told.append(f"{count} event{'s' if count != 1 else ''} {what}")
        if self.outcomes.stray:
            told.append(f"{self.outcomes.stray} predictions or dead letters of no event")
        unfit = {release.version for release in self.releases if release.kind is Kind.UNFIT}
        missed = unfit - {refused.version for refused in self.refused}
        if missed:
            told.append(f"version {', '.join(map(str, sorted(missed)))}, which no event fits, was not refused")
        if self.outcomes.dead_letters != 1:
            told.append(f"{self.outcomes.dead_letters} dead letters where 1 event was poison")
        frozen, live = self.mean_auc
        if not live > frozen:
            told.append(f"the live models' mean AUC ({live:.4f}) is not above the frozen one's ({frozen:.4f})")
        return tuple(told)


def measure(flights: Flights, played: Played, read: Read) -> DemoResult:
    """Computes every figure of a run."""
    predictions, events = read.predictions, read.events
    dead = Positions.of([d.partition for d in read.dead_letters], [d.offset for d in read.dead_letters])
    about = flight_of_each(predictions.sources, events.positions, events.flights)
    origin_ms = played.flows[0].start_ms if played.flows else 0
    times_ms = np.sort(predictions.times_ms)
    return DemoResult(
        outcomes=account(events.positions, predictions.sources, dead),
        went_live=_went_live(played, times_ms, origin_ms),
        refused=tuple(entry for entry in played.happenings if isinstance(entry, Refused)),
        releases=played.releases,
        dead_letters=read.dead_letters,
        auc=auc_by_month(
            flights.periods,
            flights.late,
            flights.has_label,
            frozen=read.frozen,
            live=live_scores(about, predictions.scores, len(flights)),
        ),
        throughput=throughput(times_ms, origin_ms=origin_ms, bucket_ms=BUCKET_MS),
        stretches=tuple(((f.start_ms - origin_ms) / 1000, (f.end_ms - origin_ms) / 1000) for f in played.flows),
        versions=dict(sorted(Counter(predictions.versions.tolist()).items())),
        waited=played.waited,
        seconds=played.seconds,
    )


def _went_live(played: Played, times_ms: Int64s, origin_ms: int) -> tuple[Swap, ...]:
    found = []
    for entry in played.happenings:
        if not isinstance(entry, WentLive):
            continue
        release = _release_of(entry, played.releases)
        created_ms = release.created_ms if release else entry.at_ms
        took_ms = entry.at_ms - created_ms if entry.release_to_live_ms is None else entry.release_to_live_ms
        at_ms = round(created_ms + took_ms)
        found.append(
            Swap(
                version=entry.version,
                before=entry.before,
                kind=release.kind if release else Kind.ROLLBACK,
                at_s=(at_ms - origin_ms) / 1000,
                publish_to_live_ms=float(took_ms),
                gap_ms=None if entry.before is None else longest_gap_ms(times_ms, at_ms, played.flows),
            )
        )
    return tuple(found)


def _release_of(entry: WentLive, releases: Sequence[ReleaseMade]) -> ReleaseMade | None:
    """The newest release of that version that was there when it went live."""
    earlier = [made for made in releases if made.version == entry.version and made.created_ms <= entry.at_ms]
    return max(earlier, key=lambda made: made.created_ms, default=None)


def _spread(spread: Spread) -> dict[str, float | None]:
    return {
        "median": None if spread.median is None else round(spread.median, 1),
        "max": None if spread.max is None else round(spread.max, 1),
    }
