"""ModelPublisher: publish, release and roll back from Python.

with ModelPublisher() as publisher:
    published = publisher.publish(
        "fraud", pipeline, examples=frame, metrics={"auc": 0.91}, require=["auc>=champion-0.01"], release=True
    )
    print(published.manifest.version, published.bytes_sent)
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self

from modelcast.config import Connection
from modelcast.errors import UsageError
from modelcast.files.fetch import Fetcher
from modelcast.files.store import FileStore
from modelcast.files.store_url import Stores
from modelcast.names import check_model_name, check_text
from modelcast.records import Release
from modelcast.registry.repository import check_topics
from modelcast.trust.admission import EVERYTHING, Verdict
from modelcast.trust.signing import load_signers, writing_admission

from .endorsement import Endorsed, endorse
from .gates import GateReport
from .progress import PublishProgress
from .published import Published
from .removal import GRACE_S, Collected, Removed, Remover
from .session import RegistryWriter
from .upload import Progress

if TYPE_CHECKING:
    from .evaluate import Champions, Evaluation
    from .examples import ExamplesSource
    from .hold import ModelView
    from .sources import Source

P = ParamSpec("P")


class ModelPublisher:
    """A publisher of models to one repository; thread-safe, one publication of a model at a time.

    Args:
        bootstrap_servers: Kafka brokers; default as `Connection.resolve`: environment, then the dev broker.
        prefix: The repository's topic prefix.
        properties: librdkafka properties by their own dotted names.
        properties_file: A client.properties file.
        signing_keys: Keys that sign every record, by name or path; by default those of `MODELCAST_SIGNING_KEY`.
        trust_policy: Goes on only from what this policy trusts, and refuses to write what it would not admit; by
            default `MODELCAST_TRUST_POLICY`. See docs/TRUST.md.

    Raises:
        UsageError, ConfigError: A key or the policy can't be used.
        BrokerError: No broker is named, or none answers.
        RepositoryNotFoundError: `modelcast init` was not run here.
        TopicConfigError: A topic of the repository would lose models.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        *,
        prefix: str | None = None,
        properties: Mapping[str, str] | None = None,
        properties_file: Path | str | None = None,
        signing_keys: Sequence[str | Path] = (),
        trust_policy: Path | str | None = None,
    ) -> None:
        connection = Connection.resolve(
            bootstrap_servers, prefix=prefix, properties=properties, properties_file=properties_file
        )
        self._open(connection, signing_keys, trust_policy)

    @classmethod
    def connect(
        cls,
        connection: Connection,
        *,
        signing_keys: Sequence[str | Path] | None = None,
        trust_policy: Path | str | None = None,
    ) -> Self:
        """A publisher on a resolved connection; raises as the constructor."""
        publisher = cls.__new__(cls)
        publisher._open(connection, signing_keys or (), trust_policy)
        return publisher

    def _open(
        self, connection: Connection, signing_keys: Sequence[str | Path], trust_policy: Path | str | None
    ) -> None:
        signers, admission = load_signers(signing_keys), writing_admission(trust_policy)
        self._log = connection.open_log()
        try:
            check_topics(self._log, connection.topics)
        except BaseException:
            self._log.close()
            raise
        self._topics = connection.topics
        self._registry = RegistryWriter(self._log, self._topics, signers=signers, admission=admission)

    def publish(
        self,
        model: str,
        source: Source,
        *,
        examples: ExamplesSource,
        fields: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        nulls: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        require: Sequence[str] = (),
        evaluate: ExamplesSource | None = None,
        label: str | None = None,
        score_output: str | None = None,
        message: str = "",
        release: bool = False,
        resend: bool = False,
        store: str | None = None,
        trust_pickle: bool = False,
        dry_run: bool = False,
        progress: bool = False,
        on_step: Callable[[str], None] | None = None,
        on_progress: Progress | None = None,
    ) -> Published:
        """Converts, checks, tries and publishes a model as its next version; visible whole or not at all.

        Args:
            model: The model's name.
            source: A trained scikit-learn, XGBoost, LightGBM or PyTorch model; an ONNX ModelProto or its bytes; the
                path of a file of any of those; `mlflow:models:/name@alias`, `mlflow:runs:/run/path` or
                `hf:owner/repo@revision`. See `modelcast.publisher.sources`.
            examples: Rows by event field (frame, list of dicts, path of CSV, JSONL or Parquet) or arrays by graph
                input (dict of arrays, path of `.npz`). They become the golden examples.
            fields: The event fields, in order, that make up a single matrix input.
            rename: The model's name of an output or input -> another; outputs name the fields of predictions.
            nulls: Event field -> what it counts as where an event has null or lacks it: `{"amount": math.nan,
                "country": ""}`. Float fields that miss values in the examples count as NaN unless you say otherwise.
            metrics: What you measured, e.g. {"auc": 0.91}; goes before what an MLflow run logged.
            require: What has to hold, or nothing is published: `auc>=0.8`, `auc>=champion-0.01`, `load_ms<500`; see
                `modelcast.publisher.gates`.
            evaluate: Rows with labels to measure the model on; requirements that follow the champion measure the
                champion on the same rows. See `modelcast.publisher.measures` for what is measured.
            label: The column of `evaluate` that holds the labels.
            score_output: The output that is measured, where it is not the only one of its kind.
            message: Words for the history.
            release: Whether this version goes live.
            resend: Sends files that live versions have too, which mends damaged chunks of all of them.
            store: URL of an object store or folder (`s3://bucket/prefix`, `file:///folder`) that the files go to in the
                place of the log; consumers have to be allowed to read it. See `modelcast.files.store`.
            trust_pickle: Whether a `.pt` file, or what a reference or folder leads to, may be unpickled, which runs it.
            dry_run: Does everything but the writing; the result says what would be written.
            progress: Draws how far it is, on a terminal or in a notebook.
            on_step: Told each step's name as it starts.
            on_progress: Told (phase, bytes done, bytes in all) while files are sent ("upload") or a champion is fetched
                to be measured ("fetch").

        Raises:
            UsageError: The name, source or examples can't be used.
            NotFoundError: A reference names what is not there.
            ModelRefusedError: The model failed a check; nothing was published.
            GateError: A requirement was not met; nothing was published.
            FencedError: Other publishers of this model took over again and again.
            BrokerError: Kafka is not there, or refused.
            StoreError: The store is not there, or refused.
        """
        from .gatekeeper import Gatekeeper
        from .prepare import prepare  # brings the converters, which a release need not wait for
        from .references import reference as references

        check_model_name(model)
        check_text(message, "the message")
        for name, value in (metrics or {}).items():
            check_text(name, "the name of a metric")
            if not name:
                raise UsageError(f"a metric without a name has the value {value!r}", hint="Write name=value.")
            if not math.isfinite(value):
                raise UsageError(f"metric {name!r} is {value}, which compares with nothing", hint="Leave it out.")
        with contextlib.ExitStack() as stack:
            shown = stack.enter_context(PublishProgress()) if progress else None
            tell = _each(on_step, shown.step if shown else None)
            moved = _each(on_progress, shown.moved if shown else None)
            files = None if store is None else stack.enter_context(FileStore(store))
            if files is not None:
                files.check()
            evaluation = self._evaluation(evaluate, label, score_output)
            fetched = references.parse(source) is not None
            gatekeeper = Gatekeeper(require, metrics or {}, evaluation, more=fetched, tell=tell, progress=moved)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelcast-")))
            prepared = prepare(
                source,
                examples,
                fields=fields,
                rename=rename,
                nulls=nulls,
                trust_pickle=trust_pickle,
                directory=folder,
                progress=tell,
            )
            metrics = {**prepared.metrics, **(metrics or {})}
            gatekeeper.admit(prepared)
            if dry_run:
                return self._registry.rehearse(
                    model,
                    prepared,
                    release=release,
                    message=message,
                    metrics=metrics,
                    resend=resend,
                    gate=gatekeeper,
                    store=files,
                )

            def gate(seen: Callable[[], ModelView]) -> GateReport:
                report = gatekeeper(seen)
                tell("upload")
                return report

            return self._registry.publish(
                model,
                prepared,
                release=release,
                message=message,
                metrics=metrics,
                resend=resend,
                progress=moved,
                gate=gate,
                store=files,
            )

    def release(self, model: str, version: int, *, message: str = "", renew: bool = False) -> Release:
        """Makes a version live; with `renew`, says with today's date that the live one still is.

        Raises:
            UsageError: What is to be renewed is not live, or no key signs the renewal.
            ModelNotFoundError, VersionNotFoundError, FencedError, BrokerError
        """
        if renew and not self._registry.holder.signers:
            raise UsageError(
                f"nobody signs the renewal of {model!r}: under a trust policy, which asks for it, it would not count",
                hint="Sign it: --sign KEY, or signing_keys=[KEY].",
            )
        text = check_text(message, "the message")
        return self._registry.release(check_model_name(model), version, message=text, renew=renew)

    def rollback(self, model: str, *, message: str = "") -> Release:
        """Re-releases the champion before the live one; again goes further back. Raises UsageError if there is none."""
        return self._registry.rollback(check_model_name(model), message=check_text(message, "the message"))

    def delete(self, model: str, version: int, *, message: str = "", force: bool = False) -> Removed:
        """Withdraws a version for ever; its number is never used again. See `Remover.delete`."""
        check_text(message, "the message")
        return Remover(self._registry.holder).delete(check_model_name(model), version, message=message, force=force)

    def verdict(self, model: str) -> Verdict | None:
        """What consumers under the trust policy say of what this publisher's keys alone signed; None without one."""
        holder = self._registry.holder
        return None if holder.admission is EVERYTHING else holder.verdict(model)

    def sign(self, model: str, version: int | None = None, *, withdrawal: bool = False) -> Endorsed:
        """Adds the signatures of this publisher's keys to a version, or to the release in force. See `endorse`."""
        return endorse(self._registry.holder, check_model_name(model), version, withdrawal=withdrawal)

    def collect_garbage(
        self,
        *,
        grace_s: float = GRACE_S,
        dry_run: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Collected:
        """Takes chunks that no version lists off the log, but those of the last `grace_s`. See `Remover.collect`."""
        return Remover(self._registry.holder).collect(grace_s=grace_s, dry_run=dry_run, progress=on_progress)

    def close(self) -> None:
        """Ends the connection; what was published stays."""
        self._log.close()

    def _evaluation(
        self, data: ExamplesSource | None, label: str | None, score_output: str | None
    ) -> tuple[Evaluation, Champions] | None:
        if data is None:
            if label is not None or score_output is not None:
                given = "--label" if label is not None else "--score-output"
                raise UsageError(f"{given} is given without rows to evaluate on", hint="Name them: --evaluate DATA")
            return None
        if label is None:
            raise UsageError(
                "rows to evaluate on are given, and not which column holds their labels",
                hint="Name it: --label COLUMN (from Python: label=...)",
            )
        from .evaluate import Champions, Evaluation

        stores = Stores.resolve()  # a champion may lie in another store than this version will
        champions = Champions(lambda cache: Fetcher(self._log, self._topics, cache, stores=stores))
        return Evaluation(data, label, score_output=score_output), champions

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _each(*listeners: Callable[P, None] | None) -> Callable[P, None]:
    """Tells all of them."""

    def tell(*args: P.args, **kwargs: P.kwargs) -> None:
        for listener in listeners:
            if listener is not None:
                listener(*args, **kwargs)

    return tell
