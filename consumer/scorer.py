"""`Scorer`: a topic of events to a topic of predictions, with whatever version of a model is live.

    Scorer("fraud", events="transactions", predictions="fraud-scores").run()

- Exactly-once by default: predictions, dead letters and the offsets they came from become visible in one transaction.
- A version is swapped between two batches; events wait in Kafka while none is live.
- Scorers of one group share the partitions. What comes from partition p goes to partition p, in order.

This module puts the parts together and keeps the figures; `loop` is the scoring thread, `commit` the committing one,
`control` follows the registry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from enum import StrEnum
from pathlib import Path

from modelcast import folders, runtime
from modelcast.config import Connection
from modelcast.errors import BrokerError, ModelcastError, UsageError
from modelcast.events.schemas import SchemaTopic
from modelcast.events.writers import WriterSchemas
from modelcast.files.store_url import Stores
from modelcast.group import GroupLog
from modelcast.names import ModelRef
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, check_topics
from modelcast.trust.policy import WhenStale
from modelcast.trust.watch import watch_policy

from .commit import Committer, Destination, FlushingCommitter, TransactionalCommitter
from .control import ControlPlane
from .dead_letters import DeadLetterBuilder
from .end import EndOfTopic
from .freshness import Freshness
from .instance import Instance, claim_instance
from .lag import LagMeter
from .loader import Loader, Weights
from .loop import CLOSE_DRAIN_S, ScoringLoop
from .observer import Observer
from .policy import Preserve
from .reports import Report, ScorerStats, Started, Stopped, Waiting, Warned
from .sampling import EventFieldsSource
from .scoring import Scoring
from .setup import plan_topics

# The broker's least by default. A killed scorer's partitions go to the others after it, unless it is back before.
SESSION_TIMEOUT_MS = 6_000
# A dead scorer's open transaction hides the offsets it was about to commit, for this and the broker's sweep of up to
# 10 s: together below 20 s. A commit that takes longer is aborted and done again.
TRANSACTION_TIMEOUT_MS = 6_000
# A scorer may be started before its model's first publication; after this its name is taken for a mistake.
UNKNOWN_MODEL_PATIENCE_S = 30.0
# How long a first version may take to go live before `until_end` gives up: a large model on a slow disk.
FIRST_VERSION_TIMEOUT_S = 300.0
STOP_NOTICED_S = 0.5


class Guarantee(StrEnum):
    """What a crash may do to predictions."""

    EXACTLY_ONCE = "exactly-once"  # nothing lost, nothing twice
    AT_LEAST_ONCE = "at-least-once"  # nothing lost; some may be there twice


class Scorer:
    """Scores a stream. `run` blocks; everything else is thread-safe.

    Args:
        model: `NAME` follows the released version, `NAME@VERSION` stays with one.
        events: The topic read; it must exist.
        predictions: The topic written; made if it is not there.
        dead_letters: Where events go that can't be scored; by default `<predictions>.dead-letters`.
        group: The consumer group; by default `<prefix>.<model>.<predictions>`.
        instance: This scorer's id within its group, kept over restarts; by default the host and the first free number.
        guarantee: `exactly-once` or `at-least-once`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        until_end: End once the group has scored what the topic held when this scorer started.
        max_stale_s: For how long the registry may be out of reach before what is known of the model counts as stale;
            None for as long as it takes.
        when_stale: What happens then: `keep` scores on and says so, `stop` lets events wait until the registry is
            followed again.
        preserve: What a swap keeps at all cost: `availability` (the new version is loaded beside the old one), or
            `resources` (the old one is unloaded first, and events wait meanwhile).
        weights: Those of large models on the CPU: `repacked` for the processor, or `shared`: one copy in memory for all
            processes of this host, which load sooner and may score middle-sized batches slower.
        bootstrap_servers: `host:port[,…]`; by default `MODELCAST_BOOTSTRAP_SERVERS`, the properties file, or the
            running dev broker.
        prefix: The repository's topic prefix.
        properties: librdkafka properties.
        properties_file: A file of them.
        connection: In the place of the four above.
        cache_dir: Where model files are kept; the user's cache folder by default.
        stores: URLs of the object stores and folders that versions by reference may be read from, with everything
            below; by default `MODELCAST_STORES`.
        state_dir: Where instance ids and release marks are kept; the user's state folder by default.
        trust_policy: Which keys may sign for which models (docs/TRUST.md); by default `MODELCAST_TRUST_POLICY`. Without
            one, every version counts.
        report: Told what happens (`consumer.reports`), on the thread of `run`.

    Raises:
        UsageError: The model's name, the guarantee, the device, `max_stale_s`, `when_stale`, `preserve` or `weights`
            can't be.
        MissingExtraError: No ONNX Runtime is installed, or none that has the device.
        ConfigError: A setting or the trust policy is wrong.
        BrokerError: No broker is named anywhere.
    """

    def __init__(
        self,
        model: str,
        events: str,
        predictions: str,
        *,
        dead_letters: str | None = None,
        group: str | None = None,
        instance: str | None = None,
        guarantee: str = Guarantee.EXACTLY_ONCE,
        device: str = "auto",
        until_end: bool = False,
        max_stale_s: float | None = None,
        when_stale: str = WhenStale.KEEP,
        preserve: str = Preserve.AVAILABILITY,
        weights: str = Weights.REPACKED,
        bootstrap_servers: str | None = None,
        prefix: str | None = None,
        properties: Mapping[str, str] | None = None,
        properties_file: Path | str | None = None,
        connection: Connection | None = None,
        cache_dir: Path | str | None = None,
        stores: Iterable[str] | None = None,
        state_dir: Path | str | None = None,
        trust_policy: Path | str | None = None,
        report: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self._ref = ModelRef.parse(model)
        self._stores = Stores.resolve(stores)
        self._to = Destination(events, (predictions,), dead_letters or f"{predictions}.dead-letters")
        if len({self._to.events, *self._to.outputs}) < 3:
            raise UsageError(
                "events, predictions and dead letters need three topics", hint=f"Got {events!r} and {predictions!r}."
            )
        if guarantee not in list(Guarantee):
            raise UsageError(f"there is no guarantee {guarantee!r}", hint="Use exactly-once or at-least-once.")
        self._guarantee = Guarantee(guarantee)
        self._freshness = Freshness.of(max_stale_s, when_stale)
        self._preserve = Preserve.of(preserve)
        self._weights = Weights.of(weights)
        self._runtime = runtime.versions()
        runtime.check_device(device)
        self._device = device
        self._connection = connection or Connection.resolve(
            bootstrap_servers, properties_file=properties_file, properties=properties, prefix=prefix
        )
        self._connection.topics.refuse_own(self._to.events, *self._to.outputs)
        self._group = group or f"{self._connection.prefix}.{self._ref.model}.{predictions}"
        self._named_instance = instance
        self._until_end = until_end
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._state_dir = Path(state_dir) if state_dir else folders.state_folder()
        self._trust = watch_policy(trust_policy, self._state_dir)
        self._report = report
        self._stop = threading.Event()
        self._loop: ScoringLoop | None = None
        self._observer: Observer | None = None

    @property
    def stats(self) -> ScorerStats:
        """Where this scorer stands."""
        return ScorerStats() if self._observer is None else self._observer.stats

    def stop(self) -> None:
        """Ends `run` after the batch at hand; safe in a signal handler."""
        self._stop.set()
        if self._loop is not None:
            self._loop.stop()

    def run(self) -> ScorerStats:
        """Scores until `stop`, or to the end.

        Returns:
            The final figures.

        Raises:
            NotFoundError: There is no repository, events topic, model (within `UNKNOWN_MODEL_PATIENCE_S`) or version of
                the number asked for; with `until_end` also: no release.
            ModelRefusedError: With `until_end`: no version can be loaded.
            TopicConfigError: A topic would lose records or has too few partitions.
            OffsetOutOfRangeError: Retention deleted events that were not scored.
            FencedError: Another process runs as this instance.
            BrokerError: Kafka is not there, or refuses.
        """
        with ExitStack() as stack:
            log = stack.enter_context(self._connection.open_log())
            check_topics(log, self._connection.topics)
            plan = plan_topics(log, self._to)
            self._check_model(log)
            if self._stop.is_set():
                return self.stats
            plan.make(log)
            end = None
            if self._until_end:
                end = EndOfTopic(log.begin_offsets(self._to.events), log.end_offsets(self._to.events, committed=False))
            instance = stack.enter_context(self._claim_instance())
            self._report(
                Started(
                    model=str(self._ref),
                    events=self._to.events,
                    predictions=self._to.predictions[0],
                    dead_letters=self._to.dead_letters,
                    group=self._group,
                    instance=instance.name,
                    guarantee=self._guarantee,
                    partitions=plan.partitions,
                )
            )
            for warning in plan.warnings:
                self._report(Warned(warning))
            return self._run_with(log, instance.name, plan.partitions, end, stack)

    def _check_model(self, log: GroupLog) -> None:
        """Nothing is made for a model or version that was never there; a first publication is waited for a while."""
        topics, wanted = self._connection.topics, {self._ref.model}.__contains__
        with closing(RegistryReader(log, topics, admission=self._trust.admission, wanted=wanted)) as reader:
            image = reader.catch_up(CATCH_UP_TIMEOUT_S)
            if self._ref.model not in image.models and not self._until_end:
                self._report(
                    Waiting(f"nobody published {self._ref.model!r} yet: {UNKNOWN_MODEL_PATIENCE_S:g} s for it")
                )
                deadline = time.monotonic() + UNKNOWN_MODEL_PATIENCE_S
                while self._ref.model not in image.models and time.monotonic() < deadline and not self._stop.is_set():
                    image = reader.poll(STOP_NOTICED_S) or image
                if self._stop.is_set():
                    return
        entry = image.model(self._ref.model)
        if self._ref.version is not None or (self._until_end and entry.champion is None):
            image.resolve(self._ref)

    def _run_with(
        self, log: GroupLog, instance: str, partitions: int, end: EndOfTopic | None, stack: ExitStack
    ) -> ScorerStats:
        started_s = time.monotonic()
        described = stack.enter_context(closing(SchemaTopic(log, self._connection.topics)))
        schemas = WriterSchemas(described)
        plane = self._control_plane(log, instance, stack)
        committer = self._committer(log, instance)
        observer = self._observer = Observer(
            self._ref, plane, committer, EventFieldsSource(log, self._to.events, schemas), self._report
        )
        plane.set_activity(self._ref, observer.activity)
        observer.sample()
        plane.start()
        if self._until_end:
            self._await_first_version(plane)
        committer.start()  # ends what a predecessor left open, before its offsets are read
        stack.callback(committer.close, CLOSE_DRAIN_S)
        loop = self._loop = ScoringLoop(
            self._to.events,
            partitions,
            lambda: log.group_consumer(self._group, instance=instance, session_timeout_ms=SESSION_TIMEOUT_MS),
            committer,
            Scoring(
                self._to.events,
                self._to.predictions[0],
                schemas,
                described.register,
                DeadLetterBuilder(self._to.events),
            ),
            plane.slot(self._ref),
            observer.hooks(),
            end=end,
        )
        stack.callback(self._loop.close)
        lag = LagMeter(log, self._to.events)
        stack.callback(lag.close)
        lag.start()
        observer.follow_lag(lambda: lag.lag(loop.positions()))
        if self._stop.is_set():
            self._loop.stop()
        self._loop.run()
        observer.tick()
        self._report(Stopped(self.stats, time.monotonic() - started_s, self._left()))
        return self.stats

    def _left(self) -> Mapping[int, int] | None:
        try:
            return {} if self._loop is None else self._loop.left()
        except BrokerError:  # stopped because, or while, Kafka is away: everything else is in order
            return None

    def _await_first_version(self, plane: ControlPlane) -> None:
        """Waits for a version to end with; raises why there will be none."""
        deadline = time.monotonic() + FIRST_VERSION_TIMEOUT_S
        while not self._stop.is_set():
            step_ends = time.monotonic() + STOP_NOTICED_S
            try:
                plane.wait_live(self._ref, STOP_NOTICED_S, patient=False)
            except ModelcastError:
                if time.monotonic() < step_ends or time.monotonic() >= deadline:
                    raise  # before its time is up: waiting alone won't help
            else:
                return

    def _claim_instance(self) -> Instance:
        scope = f"{self._connection.bootstrap_servers}\0{self._connection.prefix}\0{self._group}"
        return claim_instance(self._state_dir, scope=scope, named=self._named_instance)

    def _control_plane(self, log: GroupLog, instance: str, stack: ExitStack) -> ControlPlane:
        loader = Loader(
            log,
            self._connection.topics,
            cache_dir=self._cache_dir,
            stores=self._stores,
            state_dir=self._state_dir,
            device=self._device,
            weights=self._weights,
        )
        stack.callback(loader.close)
        plane = ControlPlane(
            log,
            self._connection.topics,
            loader,
            refs=[self._ref],
            state_dir=self._state_dir,
            role="scorer",
            instance=f"{self._group}/{instance}",
            device=self._device,
            runtime=self._runtime,
            freshness=self._freshness,
            preserve=self._preserve,
            trust=self._trust,
        )
        stack.callback(plane.close)
        return plane

    def _committer(self, log: GroupLog, instance: str) -> Committer:
        if self._guarantee is Guarantee.AT_LEAST_ONCE:
            return FlushingCommitter(self._to, log.batch_producer)
        transactional_id = f"{self._connection.prefix}.scorer.{self._group}.{instance}"
        return TransactionalCommitter(
            self._to,
            lambda: log.transactional_batch_producer(transactional_id, timeout_ms=TRANSACTION_TIMEOUT_MS),
        )
