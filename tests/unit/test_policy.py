"""What `consumer/policy.py` promises, rule by rule, and that deciding always comes to rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer.lifecycle import VersionKey
from modelcast.consumer.policy import (
    MAX_RETRY_S,
    PATIENT_ATTEMPTS,
    REPLAYED,
    UNKNOWN_VERSION,
    WITHDRAWN,
    Action,
    Basis,
    Load,
    Nothing,
    Preserve,
    Refuse,
    RefusedVersion,
    Swap,
    Unload,
    View,
    decide,
    retry_delay_s,
)
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import FileEntry, Manifest, Release, RepositoryIdentity, Signature, Withdrawn
from modelcast.registry.image import ModelEntry, RegistryImage, VersionRecord, identity_of

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
FRAUD = ModelRef("fraud")


def key(version: int, repository: str = UUID) -> VersionKey:
    return VersionKey(repository, ModelVersion("fraud", version), identity_of(manifest(version, repository)))


def absent(version: int) -> VersionKey:
    """A version that the registry says nothing more of: unknown, withdrawn or untrusted."""
    return VersionKey(UUID, ModelVersion("fraud", version))


def manifest(version: int, repository: str = UUID) -> Manifest:
    files = (FileEntry("model.onnx", 1, f"sha256:{version:064x}"),)
    return Manifest(repository, "fraud", version, 0, "", "", files, 1000, Signature((), ()), 10, {"": 21})


def image(
    releases: list[int | tuple[int, int]],
    *,
    versions: int = 9,
    withdrawn: tuple[int, ...] = (),
    unknown: tuple[int, ...] = (),
    repository: str = UUID,
) -> RegistryImage:
    """Releases are versions in order, sequence 1 on; `(version, restores)` is a rollback."""
    records: dict[int, VersionRecord | Withdrawn] = {
        number: VersionRecord(manifest(number, repository), (), 100 + number)
        for number in range(1, versions + 1)
        if number not in unknown
    }
    for number in withdrawn:
        records[number] = Withdrawn(repository, "fraud", number, 0, "", "it leaks")
    rows = []
    for sequence, what in enumerate(releases, start=1):
        version, restores = what if isinstance(what, tuple) else (what, None)
        rows.append(Release(repository, "fraud", sequence, version, 0, "", "", restores))
    entry = ModelEntry("fraud", records, tuple(rows))
    return RegistryImage(RepositoryIdentity(repository, 0, 1), {"fraud": entry}, 1000, ())


def refusal(version: int, sequence: int, *, retry_at_s: float | None = None, attempts: int = 1) -> RefusedVersion:
    basis = Basis(sequence, 100 + version, 0)
    return RefusedVersion(key(version), "golden", "wrong", 0, basis, attempts, retry_at_s)


def refused(*entries: RefusedVersion) -> dict[VersionKey, RefusedVersion]:
    return {entry.key: entry for entry in entries}


def loads(action: Action) -> int | None:
    return action.record.manifest.version if isinstance(action, Load) else None


class TestFollowing:
    @pytest.mark.parametrize("registry", [RegistryImage(), image([]), replace(image([1]), models={})])
    def test_nothing_released_nothing_done(self, registry: RegistryImage) -> None:
        assert decide(registry, View(FRAUD)) == Nothing()

    def test_the_champion_is_loaded_then_swapped_in_then_all_is_well(self) -> None:
        registry = image([1])
        assert loads(decide(registry, View(FRAUD))) == 1
        assert decide(registry, View(FRAUD, ready=key(1))) == Swap(key(1))
        assert decide(registry, View(FRAUD, live=key(1))) == Nothing()

    def test_the_highest_sequence_wins(self) -> None:
        assert loads(decide(image([1, 3, 2]), View(FRAUD, live=key(1)))) == 2

    def test_a_pinned_reference_ignores_releases(self) -> None:
        assert loads(decide(image([1]), View(ModelRef("fraud", 3)))) == 3
        assert decide(image([1, 2]), View(ModelRef("fraud", 3), live=key(3))) == Nothing()

    def test_a_version_still_loaded_is_swapped_back_without_a_load(self) -> None:
        view = View(FRAUD, live=key(2), loaded=frozenset({key(1)}))
        assert decide(image([1, 2, (1, 1)]), view) == Swap(key(1))

    def test_one_load_at_a_time(self) -> None:
        assert decide(image([1]), View(FRAUD, busy=True)) == Nothing()

    def test_a_registry_that_says_less_than_before_unloads_nothing(self) -> None:
        assert decide(image([]), View(FRAUD, live=key(1))) == Nothing()
        assert decide(RegistryImage(), View(FRAUD, live=key(1))) == Nothing()


class TestBursts:
    def test_while_a_load_runs_releases_pile_up_and_the_newest_is_loaded_next(self) -> None:
        registry = image(list(range(1, 501)), versions=500)
        assert decide(registry, View(FRAUD, live=key(1), busy=True)) == Nothing()
        assert loads(decide(registry, View(FRAUD, live=key(1)))) == 500

    def test_an_overtaken_version_that_is_a_step_forward_goes_live_meanwhile(self) -> None:
        assert decide(image([1, 2, 3]), View(FRAUD, live=key(1), ready=key(2))) == Swap(key(2))

    def test_an_overtaken_version_that_was_rolled_back_never_goes_live(self) -> None:
        assert decide(image([1, 2, (1, 1)]), View(FRAUD, live=key(1), ready=key(2))) == Unload(key(2))

    def test_an_overtaken_version_that_was_withdrawn_never_goes_live(self) -> None:
        assert decide(image([1, 2, 3], withdrawn=(2,)), View(FRAUD, live=key(1), ready=key(2))) == Unload(key(2))

    def test_what_is_ready_is_let_go_when_nothing_acceptable_is_wanted(self) -> None:
        registry = image([1, 2], withdrawn=(2,))
        known = refused(RefusedVersion(absent(2), WITHDRAWN, "", 0, Basis(2, None, 0)))
        assert decide(registry, View(FRAUD, live=key(1), ready=key(2), refused=known)) == Unload(key(2))


class TestRefusing:
    def test_a_withdrawn_champion_is_refused_once_and_the_live_one_stays(self) -> None:
        registry, view = image([1, 2], withdrawn=(2,)), View(FRAUD, live=key(1))
        action = decide(registry, view)
        assert isinstance(action, Refuse)
        assert (action.key, action.reason) == (absent(2), WITHDRAWN)
        assert "it leaks" in action.message
        known = refused(RefusedVersion(absent(2), action.reason, action.message, 0, action.basis))
        assert decide(registry, replace(view, refused=known)) == Nothing()

    def test_an_unknown_version_is_refused_and_taken_when_it_appears(self) -> None:
        view = View(FRAUD, live=key(1))
        action = decide(image([1, 2], unknown=(2,)), view)
        assert isinstance(action, Refuse)
        assert action.reason == UNKNOWN_VERSION
        known = refused(RefusedVersion(absent(2), action.reason, action.message, 0, action.basis))
        assert loads(decide(image([1, 2]), replace(view, refused=known))) == 2

    @pytest.mark.parametrize("fault", [{"withdrawn": (3,)}, {"unknown": (3,)}])
    def test_a_pin_on_a_version_that_can_not_be_is_refused(self, fault: dict[str, tuple[int, ...]]) -> None:
        action = decide(image([1], **fault), View(ModelRef("fraud", 3)))
        assert isinstance(action, Refuse)
        assert action.key == absent(3)

    def test_what_was_refused_is_not_tried_again_while_nothing_changes(self) -> None:
        assert decide(image([1, 2]), View(FRAUD, live=key(1), refused=refused(refusal(2, 2)))) == Nothing()

    def test_a_new_release_of_the_refused_version_tries_it_again(self) -> None:
        assert loads(decide(image([1, 2, 2]), View(FRAUD, live=key(1), refused=refused(refusal(2, 2))))) == 2

    def test_other_event_fields_try_it_again(self) -> None:
        view = View(FRAUD, live=key(1), refused=refused(refusal(2, 2)), fields=1)
        assert loads(decide(image([1, 2]), view)) == 2

    def test_a_failure_that_may_pass_is_tried_again_when_due(self) -> None:
        view = View(FRAUD, live=key(1), refused=refused(refusal(2, 2, retry_at_s=10.0)), now_s=9.9)
        assert decide(image([1, 2]), view) == Nothing()
        assert loads(decide(image([1, 2]), replace(view, now_s=10.0))) == 2

    def test_retries_slow_down_to_a_bound(self) -> None:
        delays = [retry_delay_s(attempts) for attempts in range(1, 100)]
        assert delays == sorted(delays)
        assert delays[0] < 1
        assert delays[-1] == MAX_RETRY_S


class TestReplay:
    def test_f11_a_champion_below_the_mark_is_refused(self) -> None:
        action = decide(image([1, 2]), View(FRAUD, mark=5))
        assert isinstance(action, Refuse)
        assert action.reason == REPLAYED
        assert "sequence 2, but 5 was seen" in action.message

    def test_f11_nothing_older_takes_the_place_of_a_replayed_champion(self) -> None:
        registry = image([1, 2])
        known = refused(RefusedVersion(key(2), REPLAYED, "", 0, Basis(2, 102, 0)))
        assert decide(registry, View(FRAUD, mark=5, refused=known)) == Nothing()

    def test_a_champion_that_was_replayed_may_serve_again_in_the_place_of_a_refused_one(self) -> None:
        replayed = RefusedVersion(key(1), REPLAYED, "", 0, Basis(1, 101, 0))
        assert loads(decide(image([1, 2]), View(FRAUD, mark=2, refused=refused(replayed, refusal(2, 2))))) == 1

    def test_f39_a_registry_that_lost_its_releases_is_told_once_and_the_live_version_stays(self) -> None:
        view = View(FRAUD, live=key(2), mark=5)
        action = decide(image([]), view)
        assert isinstance(action, Refuse)
        assert action.reason == REPLAYED
        assert "no release of 'fraud' any more, but 5 was seen" in action.message
        known = refused(RefusedVersion(action.key, action.reason, action.message, 0, action.basis))
        assert decide(image([]), replace(view, refused=known)) == Nothing()

    def test_the_marked_release_itself_is_no_replay(self) -> None:
        assert loads(decide(image([1, 2]), View(FRAUD, mark=2))) == 2

    def test_a_rollback_is_a_new_release_and_passes(self) -> None:
        assert loads(decide(image([1, 2, (1, 1)]), View(FRAUD, mark=3, live=key(2)))) == 1

    def test_f39_in_a_repository_made_anew_version_1_is_another_version_1(self) -> None:
        other = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
        action = decide(image([1], repository=other), View(FRAUD, live=key(1)))
        assert isinstance(action, Load)
        assert action.key == key(1, other)

    def test_f39_a_repository_made_anew_and_empty_leaves_the_live_version(self) -> None:
        other = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
        assert decide(image([], versions=0, repository=other), View(FRAUD, live=key(1))) == Nothing()


class TestFallingBack:
    def test_at_a_start_a_refused_champion_is_stood_in_for_by_the_one_before(self) -> None:
        assert loads(decide(image([1, 2]), View(FRAUD, refused=refused(refusal(2, 2))))) == 1

    def test_a_rolled_back_version_does_not_come_back_as_a_stand_in(self) -> None:
        # 2 was rolled back to 1, then 3 is refused: 1 serves, and if 1 is refused too, nothing does.
        registry = image([1, 2, (1, 1), 3])
        assert loads(decide(registry, View(FRAUD, refused=refused(refusal(3, 4))))) == 1
        assert decide(registry, View(FRAUD, refused=refused(refusal(3, 4), refusal(1, 3)))) == Nothing()

    def test_a_stand_in_that_was_withdrawn_is_skipped(self) -> None:
        registry, known = image([1, 2, 3], withdrawn=(2,)), refused(refusal(3, 3))
        action = decide(registry, View(FRAUD, refused=known))
        assert isinstance(action, Refuse)
        known |= refused(RefusedVersion(absent(2), action.reason, "", 0, action.basis))
        assert loads(decide(registry, View(FRAUD, refused=known))) == 1

    def test_nothing_stands_in_while_a_version_is_live(self) -> None:
        assert decide(image([1, 2, 3]), View(FRAUD, live=key(1), refused=refused(refusal(3, 3)))) == Nothing()

    def test_a_failure_that_may_pass_soon_is_waited_for(self) -> None:
        view = View(FRAUD, refused=refused(refusal(2, 2, retry_at_s=10.0)))
        assert decide(image([1, 2]), view) == Nothing()
        view = replace(view, refused=refused(refusal(2, 2, retry_at_s=10.0, attempts=PATIENT_ATTEMPTS)))
        assert loads(decide(image([1, 2]), view)) == 1

    def test_the_stand_in_makes_way_when_the_champion_is_due(self) -> None:
        view = View(FRAUD, live=key(1), refused=refused(refusal(2, 2, retry_at_s=10.0)), now_s=11.0)
        assert loads(decide(image([1, 2]), view)) == 2

    def test_a_pin_has_no_stand_in(self) -> None:
        assert decide(image([1, 3]), View(ModelRef("fraud", 3), refused=refused(refusal(3, 0)))) == Nothing()


class TestPreservingResources:
    def test_the_old_version_is_unloaded_first(self) -> None:
        action = decide(image([1, 2]), View(FRAUD, live=key(1)), Preserve.RESOURCES)
        assert isinstance(action, Unload)
        assert (action.key, action.successor and action.successor.key) == (key(1), key(2))

    def test_the_load_waits_until_the_old_version_is_gone(self) -> None:
        view = View(FRAUD, loaded=frozenset({key(1)}))
        assert decide(image([1, 2]), view, Preserve.RESOURCES) == Nothing()
        assert loads(decide(image([1, 2]), View(FRAUD), Preserve.RESOURCES)) == 2

    def test_a_refused_version_unloads_nothing(self) -> None:
        view = View(FRAUD, live=key(1), refused=refused(refusal(2, 2)))
        assert decide(image([1, 2]), view, Preserve.RESOURCES) == Nothing()

    def test_the_old_version_is_loaded_again_when_the_new_one_is_refused(self) -> None:
        view = View(FRAUD, refused=refused(refusal(2, 2)))
        assert loads(decide(image([1, 2]), view, Preserve.RESOURCES)) == 1


@dataclass
class Instance:
    """Carries out actions as the control thread does, with versions that load or do not."""

    bad: frozenset[int]
    keep: int = 1
    live: VersionKey | None = None
    kept: VersionKey | None = None
    ready: VersionKey | None = None
    refused: dict[VersionKey, RefusedVersion] = field(default_factory=dict)
    loads: int = 0

    def view(self, mark: int) -> View:
        loaded = frozenset({self.kept} if self.kept else ())
        return View(FRAUD, self.live, loaded, self.ready, refused=self.refused, mark=mark)

    def settle(self, registry: RegistryImage, preserve: Preserve) -> None:
        champion = registry.models["fraud"].champion
        mark = champion.sequence if champion else 0
        for _ in range(100):
            match decide(registry, self.view(mark), preserve):
                case Nothing():
                    return
                case Load(target, record, basis):
                    self.loads += 1
                    if record.manifest.version in self.bad:
                        self.refused[target] = RefusedVersion(target, "golden", "", 0, basis)
                    else:
                        self.ready = target
                case Swap(target):
                    self.ready = None if self.ready == target else self.ready
                    self.kept = self.live if self.keep else None
                    self.live = target
                case Unload(target):
                    self.live = None if self.live == target else self.live
                    self.ready = None if self.ready == target else self.ready
                case Refuse(target, reason, message, basis):
                    self.refused[target] = RefusedVersion(target, reason, message, 0, basis)
        pytest.fail("deciding did not come to rest in 100 steps")


@given(
    history=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=6),
    bad=st.frozensets(st.integers(1, 6)),
    withdrawn=st.frozensets(st.integers(1, 6), max_size=2),
    preserve=st.sampled_from(Preserve),
)
def test_deciding_comes_to_rest_on_the_champion_or_on_what_is_as_good_as_can_be(
    history: list[list[int]], bad: frozenset[int], withdrawn: frozenset[int], preserve: Preserve
) -> None:
    instance = Instance(bad, keep=0 if preserve is Preserve.RESOURCES else 1)
    released: list[int | tuple[int, int]] = []
    for burst in history:
        released += burst
        registry = image(released, versions=6, withdrawn=tuple(withdrawn))
        before, loads_before = instance.live, instance.loads
        instance.settle(registry, preserve)
        champion = burst[-1]
        if champion not in bad | withdrawn:
            assert instance.live == key(champion)
            assert instance.loads - loads_before <= 1
        elif before is not None and preserve is Preserve.AVAILABILITY:
            assert instance.live == before
        elif set(released) - bad - withdrawn:
            assert instance.live is not None
        assert instance.live is None or instance.live.id.version not in bad
