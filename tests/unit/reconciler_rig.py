"""A reconciler in a box: a registry to write to, servables that know whether they were destroyed, a clock to turn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from modelcast.consumer.budget import IDLE_S, Budget
from modelcast.consumer.freshness import Stale
from modelcast.consumer.lifecycle import LOAD_STEPS
from modelcast.consumer.line import Line, Swapped
from modelcast.consumer.loading import Job
from modelcast.consumer.policy import Preserve
from modelcast.consumer.reconciler import Evicted, Moment, News, Reconciler, Refused, Turn
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import FileEntry, Manifest, RepositoryIdentity, Withdrawn
from modelcast.registry.image import ModelEntry, RegistryImage, VersionRecord

from .registry_records import REPOSITORY, manifest, release, withdrawn

FRAUD = ModelRef("fraud")
CHURN = ModelRef("churn")


@dataclass
class Registry:
    """What publishers wrote; `image` is what a reader makes of it."""

    repository: RepositoryIdentity = REPOSITORY
    models: dict[str, ModelEntry] = field(default_factory=dict)
    offset: int = 0
    _read: RegistryImage = field(default_factory=RegistryImage)

    @property
    def image(self) -> RegistryImage:
        """The same object for as long as nothing changes, as readers have it."""
        image = RegistryImage(self.repository, dict(self.models), self.offset)
        self._read = self._read if image == self._read else image
        return self._read

    def publish(self, version: int, model: str = "fraud", size: int = 1) -> None:
        """A version of which one copy in memory takes `size` bytes; released by `release`."""
        made = manifest(version, model=model, repository=self.repository.uuid)
        entry = self._entry(model)
        files = (FileEntry("model.onnx", size, f"sha256:{version:064x}"),)
        record = VersionRecord(replace(made, files=files), (), self.offset)
        self._put(replace(entry, versions={**entry.versions, version: record}))

    def release(self, version: int, model: str = "fraud", restores: int | None = None) -> None:
        entry = self._entry(model)
        made = release(entry.latest_sequence + 1, version, model=model, restores=restores)
        self._put(replace(entry, releases=(*entry.releases, replace(made, repository=self.repository.uuid))))

    def put(self, version: int, model: str = "fraud", size: int = 1) -> None:
        """A version, released at once."""
        self.publish(version, model, size)
        self.release(version, model)

    def roll_back(self, model: str = "fraud") -> None:
        target = self._entry(model).rollback_target()
        if target is not None:
            self.release(target.version, model, restores=target.sequence)

    def withdraw(self, version: int, model: str = "fraud") -> None:
        entry = self._entry(model)
        gone: Withdrawn = replace(withdrawn(version, model=model), repository=self.repository.uuid)
        self._put(replace(entry, versions={**entry.versions, version: gone}))

    def _entry(self, model: str) -> ModelEntry:
        return self.models.get(model) or ModelEntry(model)

    def _put(self, entry: ModelEntry) -> None:
        self.models[entry.name] = entry
        self.offset += 1


class FakeServable:
    """Says which version it is, and whether it was destroyed."""

    device = "cpu"

    def __init__(self, of: Manifest) -> None:
        self.manifest = of
        self.id = ModelVersion(of.model, of.version)
        self.memory_bytes = of.size_bytes
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, f"{self.id} was destroyed twice"
        self.is_closed = True


class Bench:
    """Turns a reconciler as a control plane does; loads end when a test says so."""

    def __init__(
        self,
        *refs: ModelRef,
        budget_bytes: int | None = None,
        preserve: Preserve = Preserve.AVAILABILITY,
        keep: int = 1,
        idle_s: float = IDLE_S,
    ) -> None:
        self.registry = Registry()
        self.now_s = 1000.0
        self.reconciler = Reconciler(preserve=preserve, keep=keep, budget=Budget(budget_bytes, idle_s=idle_s))
        for ref in refs:
            self.reconciler.subscribe(ref)
        self.job: Job | None = None
        self.made: list[FakeServable] = []
        self.loads: list[str] = []
        self.news: list[News] = []
        self.stale: dict[ModelRef, Stale] = {}
        self.marks: dict[ModelRef, int | Exception] = {}

    def turn(self) -> Turn:
        """One turn on the registry as it is now, and those that follow from it at once."""
        self.reconciler.observe(self.registry.image)
        while True:
            moment = Moment(self.now_s, int(self.now_s * 1000))
            marks = dict.fromkeys(self.reconciler.lines, 0) | self.marks
            turn = self.reconciler.turn(moment, marks=marks, stale=self.stale)
            self.news += turn.news
            freed = 0
            for ref, slot in self.reconciler.slots():
                if count := slot.reap():
                    freed += count
                    self.reconciler.freed(ref)
            if turn.load is not None:
                assert self.job is None, "two loads at a time"
                self.job = turn.load
                self.loads.append(str(turn.load.action.key))
            if not freed:
                return turn

    def finish(self, error: BaseException | None = None) -> None:
        """Ends the load under way, well or not, and turns."""
        job, self.job = self.job, None
        assert job is not None, "nothing is being loaded"
        if error is not None:
            self.reconciler.failed(error)
        else:
            for state in LOAD_STEPS:
                self.reconciler.stepped(state)
            self.made.append(FakeServable(job.action.record.manifest))
            self.reconciler.loaded(self.made[-1], 5.0)
        self.turn()

    def settle(self) -> None:
        """Turns until nothing is left to do, all loads ending well."""
        self.turn()
        while self.job is not None:
            self.finish()

    def line(self, ref: ModelRef = FRAUD) -> Line:
        return self.reconciler.line(ref)

    def live(self, ref: ModelRef = FRAUD) -> int | None:
        servable = self.line(ref).slot.live
        return None if servable is None else servable.id.version

    def use(self, ref: ModelRef = FRAUD) -> None:
        with self.line(ref).slot.lease():
            pass

    def loaded(self) -> list[str]:
        """What is in memory."""
        return sorted(str(made.id) for made in self.made if not made.is_closed)

    def told(self) -> list[str]:
        """The news, in short."""
        words = []
        for news in self.news:
            match news:
                case Swapped():
                    words.append(f"{news.new} live")
                case Refused(ref, refusal):
                    words.append(f"{ref.model}@{refusal.version} {refusal.reason}")
                case Evicted():
                    words.append(f"{news.version} evicted")
        return words
