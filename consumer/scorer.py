"""`Scorer`: a topic of events to a topic of predictions, with whatever version of a model is live.

    Scorer("fraud", events="transactions", predictions="fraud-scores").run()
    Scorer(["fraud", "churn"], events="transactions", predictions="{model}-scores").run()

- Exactly-once by default: predictions, dead letters and the offsets they came from become visible in one transaction.
- A version is swapped between two batches; events wait in Kafka while none is live.
- Scorers of one group share the partitions. What comes from partition p goes to partition p, in order.

This module puts the parts together and keeps the figures; `loop` is the scoring thread, `commit` the committing one,
`control` follows the registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from enum import StrEnum
from functools import partial
from pathlib import Path

from modelcast import folders, runtime
from modelcast.avro import Schema
from modelcast.config import Connection
from modelcast.errors import BrokerError, ModelcastError, UsageError
from modelcast.events.schemas import SchemaTopic
from modelcast.events.writers import SchemaSource, WriterSchemas
from modelcast.files.store_url import Stores
from modelcast.group import GroupLog
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, check_scorer_may_write, check_topics
from modelcast.schema_registry import SchemaRegistry
from modelcast.trust.policy import WhenStale
from modelcast.trust.watch import watch_policy

from .batches import BatchSizer
from .buffers import Buffers
from .carrying import Carrier
from .commit import Committer, Destination, FlushingCommitter, TransactionalCommitter
from .control import ControlPlane
from .dead_letters import MAX_RECORD_BYTES, DeadLetterBuilder
from .decode.formats import EventFormat, Formats
from .end import EndOfTopic
from .freshness import Freshness
from .instance import Instance, claim_instance
from .lag import LagMeter
from .lineup import Lineup, WhenFailing
from .loader import Loader, Weights
from .loop import CLOSE_DRAIN_S, ScoringLoop
from .observer import Observer
from .policy import Preserve
from .reports import Report, ScorerStats, Started, Stopped, Waiting, Warned
from .sampling import EventFieldsSource
from .scoring import Scoring
from .setup import plan_topics, record_limits
from .targets import Predictions, Targets

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
        model: `NAME` follows the released version, `NAME@VERSION` stays with one. Several models score the same events.
        events: The topic read; it must exist.
        predictions: The topic written; made if it is not there. Of several models one for all, one with `{model}` in
            its name, or a mapping of model to topic.
        dead_letters: Where events go that can't be scored; by default `<predictions>.dead-letters`, of several models
            with a topic each `<events>.dead-letters`.
        group: The consumer group; by default `<prefix>.<model>.<predictions>`, with `+` between several.
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
        route: The event field whose value says which of several models scores an event; all do by default.
        routes: Value of that field → model, `*` for every other event; by default the values are the models' names.
        carry_headers: Names of headers that an event's predictions get too, e.g. `traceparent`.
        when_failing: What becomes of the events of a model that fails on all of them, with no other version to take its
            place: `wait` (the default for one model) or `dead-letter` (for several: the others score on).
        event_format: What the events are: `auto`, `json`, `avro`, `single-object` or `confluent` (docs/EVENTS.md).
        event_schema: The Avro schema, or its file, of events without a frame; of framed ones the schema they are read
            with.
        schema_registry: URL of the Schema Registry that framed events name their schemas by; by default
            `MODELCAST_SCHEMA_REGISTRY` or the property `schema.registry.url`.
        max_memory_bytes: What events and predictions may take while they are under way, beside the models; 512 MiB by
            default.
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
        UsageError: Models, topics and routes don't fit each other; or the guarantee, the device, `max_stale_s`,
            `when_stale`, `when_failing`, `preserve`, `weights` or `event_format` can't be.
        MissingExtraError: No ONNX Runtime is installed, or none that has the device.
        ConfigError: A setting or the trust policy is wrong.
        BrokerError: No broker is named anywhere.
    """

    def __init__(
        self,
        model: str | Sequence[str],
        events: str,
        predictions: Predictions,
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
        route: str | None = None,
        routes: Mapping[str, str] | None = None,
        carry_headers: Iterable[str] = (),
        when_failing: str | None = None,
        event_format: str = EventFormat.AUTO,
        event_schema: Schema | Path | str | None = None,
        schema_registry: str | None = None,
        max_memory_bytes: int | None = None,
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
        self._targets = Targets.of(model, predictions, route=route, routes=routes)
        self._refs = self._targets.refs
        self._carrier = Carrier(carry_headers)
        self._when_failing = WhenFailing.of(when_failing, len(self._refs))
        self._stores = Stores.resolve(stores)
        topics = self._targets.topics
        self._to = Destination(events, topics, dead_letters or self._targets.dead_letters(events))
        if len({self._to.events, *self._to.outputs}) < 2 + len(topics):
            raise UsageError(
                "events, predictions and dead letters need topics of their own",
                hint=f"Got {events!r}, {', '.join(map(repr, topics))} and {self._to.dead_letters!r}.",
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
        self._buffers = Buffers.of(max_memory_bytes)
        self._connection = (
            connection
            or Connection.resolve(
                bootstrap_servers, properties_file=properties_file, properties=properties, prefix=prefix
            )
        ).with_defaults(self._buffers.properties)
        self._connection.topics.refuse_own(self._to.events, *self._to.outputs)
        self._group = group or self._targets.group(self._connection.prefix)
        self._named_instance = instance
        self._until_end = until_end
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._state_dir = Path(state_dir) if state_dir else folders.state_folder()
        self._trust = watch_policy(trust_policy, self._state_dir)
        self._registry = self._connection.registry_settings(schema_registry)
        self._formats = Formats.of(event_format, event_schema, registry=bool(self._registry))
        self._report = report
        self._stopped = False
        self._loop: ScoringLoop | None = None
        self._observer: Observer | None = None
        self._letter_bytes = MAX_RECORD_BYTES
        self._limits: Mapping[str, int] = {}

    @property
    def stats(self) -> ScorerStats:
        """Where this scorer stands."""
        return ScorerStats() if self._observer is None else self._observer.stats

    def stop(self) -> None:
        """Ends `run` after the batch at hand; safe in a signal handler."""
        self._stopped = True
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
            check_scorer_may_write(log, self._connection.topics)
            plan = plan_topics(log, self._to)
            self._check_models(log)
            if self._stopped:
                return self.stats
            plan.make(log)
            self._limits = record_limits(log, self._to.predictions)
            self._letter_bytes = min(plan.letter_bytes, self._buffers.letter_bytes(self._connection.settings))
            end = None
            if self._until_end:
                end = EndOfTopic(log.begin_offsets(self._to.events), log.end_offsets(self._to.events, committed=False))
            instance = stack.enter_context(self._claim_instance())
            self._report(
                Started(
                    model=",".join(map(str, self._refs)),
                    events=self._to.events,
                    predictions=",".join(self._to.predictions),
                    dead_letters=self._to.dead_letters,
                    group=self._group,
                    instance=instance.name,
                    guarantee=self._guarantee,
                    partitions=plan.partitions,
                    topics={str(target.ref): target.topic for target in self._targets.each if len(self._refs) > 1},
                    route=None if self._targets.routing is None else self._targets.routing.field,
                )
            )
            for warning in [*plan.warnings, *([instance.warning] if instance.warning else [])]:
                self._report(Warned(warning))
            return self._run_with(log, instance.name, plan.partitions, end, stack)

    def _check_models(self, log: GroupLog) -> None:
        """Nothing is made for a model or version that was never there; a first publication is waited for a while."""
        topics, models = self._connection.topics, {ref.model for ref in self._refs}
        with closing(
            RegistryReader(log, topics, admission=self._trust.admission, wanted=models.__contains__)
        ) as reader:
            image = reader.catch_up(CATCH_UP_TIMEOUT_S)
            missing = sorted(models.difference(image.models))
            if missing and not self._until_end:
                named = ", ".join(map(repr, missing))
                self._report(Waiting(f"nobody published {named} yet: {UNKNOWN_MODEL_PATIENCE_S:g} s for it"))
                deadline = time.monotonic() + UNKNOWN_MODEL_PATIENCE_S
                while not models.issubset(image.models) and time.monotonic() < deadline and not self._stopped:
                    image = reader.poll(STOP_NOTICED_S) or image
                if self._stopped:
                    return
        for ref in self._refs:
            entry = image.model(ref.model)
            if ref.version is not None or (self._until_end and entry.champion is None):
                image.resolve(ref)

    def _run_with(
        self, log: GroupLog, instance: str, partitions: int, end: EndOfTopic | None, stack: ExitStack
    ) -> ScorerStats:
        started_s = time.monotonic()
        described = stack.enter_context(closing(SchemaTopic(log, self._connection.topics)))
        schemas = WriterSchemas(described, self._open_registry(stack))
        plane = self._control_plane(log, instance, stack)
        committer = self._committer(log, instance)
        observer = self._observer = Observer(
            self._refs,
            plane,
            committer,
            EventFieldsSource(log, self._to.events, schemas, self._formats),
            self._report,
            is_for_all=self._targets.routing is None,
        )
        for place, ref in enumerate(self._refs):
            plane.set_activity(ref, partial(observer.activity, place))
        observer.sample()
        plane.start()
        if self._until_end:
            self._await_first_versions(plane)
        committer.start()  # ends what a predecessor left open, before its offsets are read
        stack.callback(committer.close, CLOSE_DRAIN_S)
        loop = self._loop = ScoringLoop(
            self._to.events,
            partitions,
            lambda: log.group_consumer(self._group, instance=instance, session_timeout_ms=SESSION_TIMEOUT_MS),
            committer,
            self._scoring(schemas, described),
            Lineup([plane.slot(ref) for ref in self._refs], when_failing=self._when_failing),
            observer.hooks(),
            end=end,
            sizer=BatchSizer(events_max=self._targets.batch_events, bytes_max=self._buffers.batch_bytes),
        )
        stack.callback(self._loop.close)
        lag = LagMeter(log, self._to.events)
        stack.callback(lag.close)
        lag.start()
        observer.follow_lag(lambda: lag.lag(loop.positions()))
        if self._stopped:
            self._loop.stop()
        self._loop.run()
        observer.tick()
        self._report(Stopped(self.stats, time.monotonic() - started_s, self._left()))
        return self.stats

    def _scoring(self, schemas: SchemaSource, described: SchemaTopic) -> Scoring:
        return Scoring(
            self._to.events,
            [target.topic for target in self._targets.each],
            schemas,
            described.register,
            DeadLetterBuilder(self._to.events, max_bytes=self._letter_bytes),
            routing=self._targets.routing,
            carrier=self._carrier,
            formats=self._formats,
            limits=self._limits,
        )

    def _open_registry(self, stack: ExitStack) -> SchemaRegistry | None:
        """The Schema Registry, asked once: a wrong URL or password is told before the first event is waited for."""
        if not self._formats.needs_headers:
            return None
        registry = stack.enter_context(SchemaRegistry(self._registry))
        registry.check()
        return registry

    def _left(self) -> Mapping[int, int] | None:
        try:
            return {} if self._loop is None else self._loop.left()
        except BrokerError:  # stopped because, or while, Kafka is away: everything else is in order
            return None

    def _await_first_versions(self, plane: ControlPlane) -> None:
        """Waits for a version of each model to end with; raises why there will be none."""
        deadline = time.monotonic() + FIRST_VERSION_TIMEOUT_S
        waiting = list(self._refs)
        while waiting and not self._stopped:
            step_ends = time.monotonic() + STOP_NOTICED_S
            try:
                plane.wait_live(waiting[0], STOP_NOTICED_S, patient=False)
            except ModelcastError:
                if time.monotonic() < step_ends or time.monotonic() >= deadline:
                    raise  # before its time is up: waiting alone won't help
            else:
                waiting.pop(0)

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
            refs=self._refs,
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
