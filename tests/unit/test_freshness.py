"""How old may be what is known: row 12, on clocks that are turned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcast.consumer.freshness import Freshness, Stale, StaleReason
from modelcast.errors import UsageError
from modelcast.names import ModelRef
from modelcast.registry.image import RegistryImage
from modelcast.trust.admission import EVERYTHING, PolicyAdmission
from modelcast.trust.policy import WhenStale, parse_policy

from .registry_records import REPOSITORY, manifest, release
from .trust_rig import image, policy_text, record

FRAUD = ModelRef("fraud")
NO_LIMIT = Freshness()
DAY_MS = 24 * 3600 * 1000
RELEASED_MS = release(1, 1).created_ms


def known(*released: int) -> RegistryImage:
    """A registry with a release of version 1 at each of these times."""
    releases = [
        record(replace(release(number, 1), created_ms=at_ms), "alice") for number, at_ms in enumerate(released, start=1)
    ]
    return image(record(REPOSITORY), record(manifest(1), "alice"), *releases)


def ruled(lines: str, *, clock_ms: int = 0) -> PolicyAdmission:
    return PolicyAdmission(parse_policy(policy_text("fraud: alice") + lines), lambda: clock_ms)


def judged(
    freshness: Freshness = NO_LIMIT,
    *,
    found: RegistryImage | None = None,
    ref: ModelRef = FRAUD,
    admission: PolicyAdmission | None = None,
    now_ms: int = RELEASED_MS,
    stale_s: float = 0.0,
) -> Stale | None:
    under = admission or EVERYTHING
    return freshness.verdict(found or known(RELEASED_MS), ref, under, now_ms=now_ms, stale_s=stale_s)


class TestUnreachable:
    def test_f12_without_a_limit_nothing_is_too_old(self) -> None:
        assert judged(stale_s=10 * 365 * 24 * 3600.0) is None

    @pytest.mark.parametrize("when", list(WhenStale))
    def test_f12_a_registry_out_of_reach_for_longer_than_allowed_is_stale(self, when: WhenStale) -> None:
        freshness = Freshness(3600, when)
        assert judged(freshness, stale_s=3600) is None
        stale = judged(freshness, stale_s=3602)
        assert stale is not None
        assert (stale.reason, stale.stop) == (StaleReason.UNREACHABLE, when is WhenStale.STOP)
        assert stale.since_ms == RELEASED_MS - 2000

    def test_f12_it_is_fresh_again_once_the_registry_is_followed(self) -> None:
        assert judged(Freshness(3600), stale_s=0.0) is None

    def test_nothing_known_is_not_stale(self) -> None:
        assert Freshness(1).verdict(None, FRAUD, EVERYTHING, now_ms=0, stale_s=100.0) is None

    @pytest.mark.parametrize("limit", [0, -1, float("nan")])
    def test_a_limit_that_is_no_time_is_refused(self, limit: float) -> None:
        with pytest.raises(UsageError):
            Freshness(limit)

    def test_an_application_says_it_in_words(self) -> None:
        assert Freshness.of(60.0, "stop") == Freshness(60.0, WhenStale.STOP)
        with pytest.raises(UsageError, match="'panic'"):
            Freshness.of(None, "panic")
        with pytest.raises(UsageError, match="how long"):
            Freshness.of(None, "stop")


class TestFrozen:
    @pytest.mark.parametrize(
        ("lines", "stops"), [("", False), ('when_stale = "keep"', False), ('when_stale = "stop"', True)]
    )
    def test_f12_a_newest_release_older_than_its_rule_allows_is_frozen(self, lines: str, stops: bool) -> None:
        admission = ruled(f'max_age = "30d"\n{lines}')
        assert judged(admission=admission, now_ms=RELEASED_MS + 30 * DAY_MS - 1) is None
        stale = judged(admission=admission, now_ms=RELEASED_MS + 31 * DAY_MS)
        assert stale is not None
        assert (stale.reason, stale.stop, stale.since_ms) == (StaleReason.FROZEN, stops, RELEASED_MS + 30 * DAY_MS)
        assert "modelcast release fraud 1 --renew --sign KEY" in stale.message

    def test_f12_a_release_of_today_ends_it(self) -> None:
        renewed = known(RELEASED_MS, RELEASED_MS + 31 * DAY_MS)
        assert judged(found=renewed, admission=ruled('max_age = "30d"'), now_ms=RELEASED_MS + 32 * DAY_MS) is None

    def test_f12_a_clock_set_back_makes_nothing_fresh(self) -> None:
        admission = ruled('max_age = "36h"', clock_ms=RELEASED_MS + 2 * DAY_MS)
        assert judged(admission=admission, now_ms=RELEASED_MS) is not None

    def test_without_a_policy_or_an_age_in_it_nothing_is_frozen(self) -> None:
        assert judged(now_ms=RELEASED_MS + 10_000 * DAY_MS) is None
        assert judged(admission=ruled(""), now_ms=RELEASED_MS + 10_000 * DAY_MS) is None

    def test_a_pinned_version_and_a_model_without_releases_are_not_frozen(self) -> None:
        late = RELEASED_MS + 10_000 * DAY_MS
        assert judged(admission=ruled('max_age = "1d"'), ref=ModelRef("fraud", 1), now_ms=late) is None
        assert judged(admission=ruled('max_age = "1d"'), found=known(), now_ms=late) is None

    def test_of_two_reasons_the_one_that_stops_counts(self) -> None:
        late = RELEASED_MS + 2 * DAY_MS
        stops = ruled('max_age = "1d"\nwhen_stale = "stop"')
        stale = judged(Freshness(1), admission=stops, now_ms=late, stale_s=10.0)
        assert stale is not None
        assert stale.reason is StaleReason.FROZEN
        stale = judged(Freshness(1, WhenStale.STOP), admission=ruled('max_age = "1d"'), now_ms=late, stale_s=10.0)
        assert stale is not None
        assert stale.reason is StaleReason.UNREACHABLE
