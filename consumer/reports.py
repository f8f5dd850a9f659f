"""What a scorer tells whoever runs it: values, given to one callback in the order they happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelcast.names import ModelVersion


@dataclass(frozen=True, slots=True)
class ModelStats:
    """Where one of several models of a scorer stands.

    Attributes:
        model: As it was named: `NAME` or `NAME@VERSION`.
        live: The version that scores now; None if none does.
        dead_letters: Events it could not score; one that several could not is one dead letter.
    """

    model: str
    live: ModelVersion | None = None
    predictions: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class ScorerStats:
    """Where a scorer stands. Counts are of what was committed since it started.

    Attributes:
        events_per_s: Over the last seconds.
        live: The version that scores now; None while events wait, and of a scorer with several models.
        lag: Events that wait in this scorer's partitions; None while it has none, or Kafka does not say.
        models: Each of several; empty for one.
    """

    events: int = 0
    predictions: int = 0
    dead_letters: int = 0
    commits: int = 0
    swaps: int = 0
    recoveries: int = 0
    events_per_s: float = 0.0
    live: ModelVersion | None = None
    lag: int | None = None
    models: tuple[ModelStats, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The scorer is about to consume.

    Attributes:
        model: As it was named; several with commas between them.
        predictions: The topic, or the topics with commas between them.
        topics: Topic of predictions by model, where there are several models.
        route: The event field that says which of them scores an event.
    """

    model: str
    events: str
    predictions: str
    dead_letters: str
    group: str
    instance: str
    guarantee: str
    partitions: int
    topics: Mapping[str, str] = field(default_factory=dict)
    route: str | None = None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should mend, though scoring goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Events wait in Kafka, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class WentLive:
    """The first version scores.

    Attributes:
        load_ms: What its loading took.
        release_to_live_ms: From its release until now (clocks of two hosts); None for a pinned version.
    """

    version: ModelVersion
    device: str
    load_ms: float
    release_to_live_ms: float | None


@dataclass(frozen=True, slots=True)
class Swapped:
    """Another version scores from the next batch on; attributes as of `WentLive`."""

    old: ModelVersion
    new: ModelVersion
    device: str
    load_ms: float
    release_to_live_ms: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A version will not go live here."""

    version: ModelVersion
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Recovering:
    """A batch was not committed; the scorer goes back to the committed offsets."""

    cause: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """Some seconds passed."""

    stats: ScorerStats


@dataclass(frozen=True, slots=True)
class Stopped:
    """The scorer has ended; everything consumed was committed or will be scored again.

    Attributes:
        left: Offsets before the end that were not passed, by partition (`until_end` only); None if Kafka did not say.
    """

    stats: ScorerStats
    seconds: float
    left: Mapping[int, int] | None


Report = Started | Warned | Waiting | WentLive | Swapped | Refused | Recovering | Progressed | Stopped
