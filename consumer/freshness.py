"""How old may what is known of a model be, and what happens when it is older. Pure: no I/O; time is passed.

- *Unreachable*: the registry was not followed for longer than the application allows. It says itself how long.
- *Frozen*: the registry is followed, and the newest release it holds is older than the trust policy's rule allows.
  Whoever controls the brokers can withhold releases and their signatures, but can't sign one with today's date; so
  publishers release at least that often (`modelcast release NAME VERSION --renew`).
- A pinned version is never frozen: no newer release would change it.
- Time goes by the policy's clock, which never goes back, where that is ahead of the one given.

    stale = Freshness(max_stale_s=3600).verdict(image, ref, admission, now_ms=…, stale_s=follower.stale_s)
    if stale is not None and stale.stop: ...  # the slot is emptied until it is fresh again
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelcast.errors import UsageError
from modelcast.names import ModelRef
from modelcast.registry.image import RegistryImage
from modelcast.trust.admission import Admission
from modelcast.trust.policy import WhenStale, age_words


class StaleReason(StrEnum):
    """Why what is known of a model is too old."""

    UNREACHABLE = "unreachable"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Stale:
    """What is known of a model is too old.

    Attributes:
        since_ms: From when on it was.
        stop: Nothing is to be live until it is fresh again; else it is said, and what is live stays.
    """

    reason: StaleReason
    since_ms: int
    stop: bool
    message: str


@dataclass(frozen=True, slots=True)
class Freshness:
    """What an application allows.

    Attributes:
        max_stale_s: For how long the registry may be out of reach; None for as long as it takes.
        when_stale: What happens then.

    Raises:
        UsageError: `max_stale_s` is no time.
    """

    max_stale_s: float | None = None
    when_stale: WhenStale = WhenStale.KEEP

    def __post_init__(self) -> None:
        if self.max_stale_s is not None and not self.max_stale_s > 0:
            raise UsageError(
                f"a registry can't be called stale after {self.max_stale_s:g} s",
                hint="Allow some time, e.g. 3600; without a limit what is live stays however long Kafka is away.",
            )

    @classmethod
    def of(cls, max_stale_s: float | None, when_stale: str) -> Freshness:
        """From an application's options. Raises UsageError, also for `stop` without a limit: it would never stop."""
        if when_stale not in list(WhenStale):
            raise UsageError(f"when_stale can't be {when_stale!r}", hint="Use keep or stop.")
        if max_stale_s is None and when_stale == WhenStale.STOP:
            raise UsageError(
                "when_stale is stop, and nothing says how long the registry may be out of reach",
                hint="Give max_stale_s (--max-stale), e.g. 3600 (1h).",
            )
        return cls(max_stale_s, WhenStale(when_stale))

    def verdict(
        self, image: RegistryImage | None, ref: ModelRef, admission: Admission, *, now_ms: int, stale_s: float
    ) -> Stale | None:
        """What is too old about a model; of two reasons the one that stops it, None if it is fresh.

        Args:
            image: Made under `admission`; None while nothing is known, which is not stale.
            now_ms: Epoch milliseconds.
            stale_s: For how long the registry could not be followed.
        """
        if image is None:
            return None
        found = [
            stale for stale in (self._unreachable(now_ms, stale_s), _frozen(image, ref, admission, now_ms)) if stale
        ]
        return max(found, key=lambda stale: stale.stop, default=None)

    def _unreachable(self, now_ms: int, stale_s: float) -> Stale | None:
        if self.max_stale_s is None or stale_s <= self.max_stale_s:
            return None
        return Stale(
            StaleReason.UNREACHABLE,
            now_ms - round((stale_s - self.max_stale_s) * 1000),
            self.when_stale is WhenStale.STOP,
            f"the registry was not followed for longer than the {self.max_stale_s:g} s that are allowed",
        )


def _frozen(image: RegistryImage, ref: ModelRef, admission: Admission, now_ms: int) -> Stale | None:
    rule, entry = admission.rule_for(ref.model), image.models.get(ref.model)
    if rule is None or rule.max_age_ms is None or entry is None or ref.version is not None:
        return None
    newest = entry.last_dated
    if newest is None:
        return None
    since_ms = newest.created_ms + rule.max_age_ms
    if max(now_ms, admission.now_ms()) < since_ms:
        return None
    return Stale(
        StaleReason.FROZEN,
        since_ms,
        rule.when_stale is WhenStale.STOP,
        f"the newest release of {ref.model!r} ({newest.id}) is older than the {age_words(rule.max_age_ms)} that "
        f"{rule} allows: it may be that newer ones are withheld; if there is none, renew it with: "
        f"modelcast release {ref.model} {newest.version} --renew --sign KEY",
    )
