"""What never happens, whatever the registry, the loader, users and time do: `consumer/reconciler.py` under Hypothesis.

- Never two live versions of a model, and no more memory than allowed.
- Never none after the first, unless it was taken off for a reason: resources are preserved, it failed live, it is too
  old to be used, or another model needs its memory.
- Nothing goes live that was rolled back, replayed, withdrawn or refused.
- Nothing is destroyed under a lease, nor twice, and nothing that was let go of stays loaded.
- When all is quiet, every model is on the newest acceptable version, or says that memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelcast.consumer.budget import IDLE_S
from modelcast.consumer.freshness import Stale, StaleReason
from modelcast.consumer.lifecycle import HISTORY, LOAD_STEPS, State
from modelcast.consumer.line import Line, Swapped
from modelcast.consumer.policy import MAX_RETRY_S, Preserve
from modelcast.errors import BrokerError, GoldenError, OutOfMemoryError
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Release, RepositoryIdentity
from modelcast.registry.image import ModelEntry, VersionRecord

from .reconciler_rig import Bench, FakeServable, Registry

MODELS = ("fraud", "fraud-eu", "churn")
REFS = (ModelRef("fraud"), ModelRef("churn"), ModelRef("fraud", 2), ModelRef("fraud-eu"))
# Two of most sizes fit the budget, and one never does.
SIZES = st.sampled_from([1, 2, 3, 4, 4, 9])
BUDGET_BYTES = 8
FLAWS = [None, None, None, GoldenError("row 3 is off")]
TROUBLE = [BrokerError("away"), OSError(28, "No space left on device"), ValueError("a defect")]

models = st.sampled_from(MODELS)
refs = st.sampled_from(REFS)
steps = st.integers(0, len(LOAD_STEPS))
# How many loads end before the next thing happens: what is under way stays under way, or all comes to rest.
paces = st.sampled_from([0, 1, 9])


class Instances(RuleBasedStateMachine):
    """One instance that follows two models and a pin by name, and one more by a pattern."""

    @initialize(
        preserve=st.sampled_from([*Preserve, Preserve.AVAILABILITY]),
        budget=st.sampled_from([None, BUDGET_BYTES]),
        keep=st.sampled_from([0, 1]),
        sizes=st.lists(SIZES, min_size=2, max_size=6),
    )
    def start(self, preserve: Preserve, budget: int | None, keep: int, sizes: list[int]) -> None:
        self.preserve, self.budget = preserve, budget
        self.bench = Bench(*REFS[:3], budget_bytes=budget, preserve=preserve, keep=keep)
        self.bench.reconciler.follow("fraud-*")
        self.flaws: dict[tuple[str, ModelVersion], Exception] = {}
        self.seen: dict[tuple[str, str], int] = {}  # the highest release of a model
        self.failed: dict[tuple[ModelRef, str, int], int] = {}  # versions that failed live, by what release they ran
        self.excused: set[ModelRef] = set()
        self.left: set[ModelRef] = set()
        self.was_live: set[ModelRef] = set()
        self.leases: list[tuple[object, FakeServable]] = []
        for number, size in enumerate(sizes):
            self.publish_and_release(MODELS[number % 3], size, None, 1, 9)

    # -- what publishers do

    @rule(model=models, size=SIZES, flaw=st.sampled_from(FLAWS), count=st.integers(1, 4), pace=paces)
    def publish_and_release(self, model: str, size: int, flaw: Exception | None, count: int, pace: int) -> None:
        for _ in range(count):
            version = self.entry(model).latest_version + 1
            self.bench.registry.put(version, model, size)
            if flaw is not None:
                self.flaws[self.uuid, ModelVersion(model, version)] = flaw
        self.run(pace)

    @rule(model=models, version=st.integers(1, 6), pace=paces)
    def release_again(self, model: str, version: int, pace: int) -> None:
        self.bench.registry.release(version, model)
        self.run(pace)

    @rule(model=models, pace=paces)
    def roll_back(self, model: str, pace: int) -> None:
        self.bench.registry.roll_back(model)
        self.run(pace)

    @rule(model=models, version=st.integers(1, 6), pace=paces)
    def withdraw(self, model: str, version: int, pace: int) -> None:
        self.bench.registry.withdraw(version, model)
        self.run(pace)

    @rule(model=models, pace=paces)
    def lose_releases(self, model: str, pace: int) -> None:
        """The topic was truncated, or an old one is replayed."""
        entry = self.bench.registry.models.get(model)
        if entry is not None:
            self.bench.registry.models[model] = ModelEntry(model, entry.versions, entry.releases[:-1])
        self.run(pace)

    @rule()
    def make_anew(self) -> None:
        number = int(self.uuid[-2:], 16) + 1
        identity = RepositoryIdentity(f"0b7a4c1e-0000-4000-8000-0000000000{number:02x}", 0, 1)
        self.bench.registry = Registry(identity)

    # -- what happens on the instance

    @rule(seconds=st.sampled_from([0, 0.6, MAX_RETRY_S, IDLE_S + 1]), pace=paces)
    def let_time_pass(self, seconds: float, pace: int) -> None:
        self.bench.now_s += seconds
        self.run(pace)

    @precondition(lambda self: self.bench.job is not None)
    @rule(count=steps, trouble=st.sampled_from(TROUBLE))
    def fail_a_load_at_some_step(self, count: int, trouble: Exception) -> None:
        for state in LOAD_STEPS[:count]:
            self.bench.reconciler.stepped(state)
        self.bench.finish(trouble)
        self.look()

    @precondition(lambda self: self.bench.job is not None and self.preserve is Preserve.AVAILABILITY)
    @rule()
    def run_out_of_memory(self) -> None:
        self.bench.finish(OutOfMemoryError("the device has no more"))
        self.look()

    @rule(ref=refs, pace=paces)
    def fail_live(self, ref: ModelRef, pace: int) -> None:
        line = self.bench.reconciler.lines.get(ref)
        live = None if line is None else line.slot.live
        if live is not None and live.manifest.repository == self.uuid and ref.model in self.observed_models():
            self.bench.reconciler.failed_live(ref, live.id, "every row failed")
            self.run(pace, failed=(ref, live.id.version))

    @rule(ref=refs, idle_s=st.sampled_from([0, IDLE_S + 1]), pace=paces)
    def ask(self, ref: ModelRef, idle_s: float, pace: int) -> None:
        self.bench.now_s += idle_s
        if ref in self.bench.reconciler.lines:
            self.bench.reconciler.wake(ref)
            self.run(pace)

    @rule(ref=refs)
    def use(self, ref: ModelRef) -> None:
        if ref in self.bench.reconciler.lines and self.bench.live(ref) is not None:
            self.bench.use(ref)

    @rule(ref=refs)
    def begin_a_long_call(self, ref: ModelRef) -> None:
        line = self.bench.reconciler.lines.get(ref)
        if line is not None and line.slot.live is not None and len(self.leases) < 3:
            lease = line.slot.lease()
            self.leases.append((lease, lease.__enter__()))

    @precondition(lambda self: self.leases)
    @rule()
    def end_a_long_call(self) -> None:
        lease, _ = self.leases.pop(0)
        lease.__exit__(None, None, None)

    @rule(ref=refs, stop=st.booleans())
    def grow_stale(self, ref: ModelRef, stop: bool) -> None:
        self.bench.stale[ref] = Stale(StaleReason.UNREACHABLE, 0, stop, "too old")
        self.run()

    @rule(pace=paces)
    def be_fresh_again(self, pace: int) -> None:
        self.bench.stale.clear()
        self.run(pace)

    @rule(ref=refs, pace=paces)
    def come_or_go(self, ref: ModelRef, pace: int) -> None:
        if ref in self.bench.reconciler.lines:
            self.bench.reconciler.unsubscribe(ref)
            self.left.add(ref)
            self.was_live.discard(ref)
            self.failed = {key: sequence for key, sequence in self.failed.items() if key[0] != ref}
        else:
            self.bench.reconciler.subscribe(ref)
            self.left.discard(ref)
        self.run(pace)

    # -- what never happens

    @invariant()
    def no_model_has_two_live_versions(self) -> None:
        for line in self.lines():
            live = [key for key, state in line.slot.states().items() if state is State.LIVE]
            assert live == ([] if line.slot.live_key is None else [line.slot.live_key])

    @invariant()
    def whoever_was_live_is_live_unless_there_is_a_reason(self) -> None:
        for line in self.lines():
            if line.slot.live is not None:
                self.was_live.add(line.ref)
                self.excused.discard(line.ref)
            elif line.ref in self.was_live and self.preserve is Preserve.AVAILABILITY:
                assert line.is_stopped or line.is_evicted or line.ref in self.excused, line.ref

    @invariant()
    def what_is_stale_where_it_must_not_be_does_not_serve(self) -> None:
        for line in self.lines():
            assert not (line.is_stopped and line.slot.live is not None)

    @invariant()
    def nothing_is_destroyed_under_a_lease(self) -> None:
        assert not any(servable.is_closed for _, servable in getattr(self, "leases", ()))

    @invariant()
    def memory_is_within_the_budget(self) -> None:
        if getattr(self, "budget", None) is not None:
            loading = 0 if self.bench.job is None else self.bench.job.action.record.manifest.size_bytes
            assert self.memory() + loading <= BUDGET_BYTES

    @invariant()
    def every_loaded_version_is_in_a_slot(self) -> None:
        if hasattr(self, "bench"):
            held = 0
            for _, slot in self.bench.reconciler.slots():
                held += len(slot.loaded()) + (slot.live is not None)
            assert held == len(self.bench.loaded())

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        while self.leases:
            self.end_a_long_call()
        self.bench.stale.clear()
        self.come_to_rest()
        by_pattern = REFS[3]
        if self.entry(by_pattern.model).champion is not None:
            assert by_pattern in self.bench.reconciler.lines or by_pattern in self.left
        for line in self.lines():
            self.check_converged(line)
            self.check_comes_when_asked(line)

    # -- how

    @property
    def uuid(self) -> str:
        return self.bench.registry.repository.uuid

    def entry(self, model: str) -> ModelEntry:
        return self.bench.registry.models.get(model) or ModelEntry(model)

    def observed_models(self) -> set[str]:
        return set(self.bench.registry.models)

    def lines(self) -> list[Line]:
        return list(self.bench.reconciler.lines.values()) if hasattr(self, "bench") else []

    def memory(self) -> int:
        return sum(made.memory_bytes for made in self.bench.made if not made.is_closed)

    def run(self, pace: int = 0, failed: tuple[ModelRef, int] | None = None) -> None:
        """Turns, as somebody does who keeps the marks."""
        for model in MODELS:
            champion = self.entry(model).champion
            place = (self.uuid, model)
            self.seen[place] = max(self.seen.get(place, 0), champion.sequence if champion is not None else 0)
        self.bench.marks = {ref: self.seen[self.uuid, ref.model] for ref in REFS if ref.version is None}
        if failed is not None:
            ref, version = failed
            self.excused.add(ref)
            self.failed[ref, self.uuid, version] = self.named_by(ref, version)
        self.bench.turn()
        self.look()
        if failed is not None:
            assert self.bench.live(failed[0]) != failed[1]
        while self.bench.job is not None and pace > 0:
            self.finish()
            pace -= 1

    def look(self) -> None:
        """Looks at what just happened."""
        for line in self.lines():
            if line.is_stopped or line.is_evicted:  # it has to come back before it can be expected to be live
                self.excused.add(line.ref)
        for swapped in self.bench.news:
            if isinstance(swapped, Swapped):
                self.check_may_be_live(swapped)
        self.bench.news.clear()

    def check_may_be_live(self, swapped: Swapped) -> None:
        ref, version = swapped.ref, swapped.new.version
        assert isinstance(self.entry(ref.model).versions.get(version), VersionRecord), (
            "it was withdrawn, or never there"
        )
        assert (self.uuid, swapped.new) not in self.flaws
        if ref.version is not None:
            assert version == ref.version
            return
        champion = self.entry(ref.model).champion
        assert champion is not None
        assert champion.sequence >= self.seen[self.uuid, ref.model], "a replayed release"
        named = [found for found in self.chain(ref) if found is not None and found.version == version]
        is_on_the_way = version < champion.version and (swapped.old is None or version > swapped.old.version)
        assert named or is_on_the_way, f"{swapped.new} was rolled back"

    def finish(self) -> None:
        assert self.bench.job is not None
        manifest = self.bench.job.action.record.manifest
        self.bench.finish(self.flaws.get((manifest.repository, manifest.id)))
        self.look()

    def come_to_rest(self) -> None:
        for _ in range(4):
            self.bench.now_s += MAX_RETRY_S
            self.run()
            while self.bench.job is not None:
                self.finish()

    def chain(self, ref: ModelRef) -> Iterator[Release | None]:
        """What may serve, best first: the champion, and what rollbacks would restore."""
        if ref.version is not None:
            yield None
            return
        entry = self.entry(ref.model)
        current = entry.champion
        while current is not None:
            yield current
            origin = current.origin
            current = next((found for found in reversed(entry.releases) if found.sequence < origin), None)

    def named_by(self, ref: ModelRef, version: int) -> int:
        """The release by which a version may serve; 0 if there is none."""
        return next((found.sequence for found in self.chain(ref) if found and found.version == version), 0)

    def is_acceptable(self, ref: ModelRef, release: Release | None) -> bool:
        version = ref.version if release is None else release.version
        record = self.entry(ref.model).versions.get(version or 0)
        if not isinstance(record, VersionRecord) or (self.uuid, record.manifest.id) in self.flaws:
            return False
        if self.budget is not None and record.manifest.size_bytes > self.budget:
            return False
        failed = self.failed.get((ref, self.uuid, record.manifest.version))
        return failed is None or failed != self.named_by(ref, record.manifest.version)

    def check_converged(self, line: Line) -> None:
        ref = line.ref
        champion = next(self.chain(ref), None)
        if ref.version is None and (champion is None or champion.sequence < self.seen[self.uuid, ref.model]):
            return  # nothing was released, or it was replayed: what is live stays
        if line.short is not None or line.is_evicted:
            assert self.budget is not None
            return
        live = line.slot.live
        if self.is_acceptable(ref, champion):
            assert live is not None, f"{ref} has nothing live"
            assert live.manifest.repository == self.uuid
            assert live.id.version == (ref.version if champion is None else champion.version)
        elif live is None:
            assert not any(self.is_acceptable(ref, release) for release in self.chain(ref))
        states = line.slot.states()
        assert set(states.values()) <= {State.LIVE, State.KEPT, *HISTORY}

    def check_comes_when_asked(self, line: Line) -> None:
        """Others that nobody uses make room for it, and it is live."""
        if line.is_idle:
            self.bench.now_s += IDLE_S + 1
            self.bench.reconciler.wake(line.ref)
            self.come_to_rest()
            assert not line.is_idle
            self.check_converged(line)


Instances.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestInstances = Instances.TestCase
