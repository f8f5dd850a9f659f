"""What stands at the gate: the requirements of one publication, with what the candidate and the champion measure up to.

- The gate is asked each time the model's id was taken, because the champion may be another by then. What was measured
  of the candidate, and of a champion, is measured once.
- A metric that was measured of the candidate is measured of the champion too, on the same rows, if a requirement
  compares them; what the champion's publisher stated, of other rows perhaps, does not count then.
- What was measured here goes before what was stated.
- The champion is the one that consumers run. One that is live and can't be seen lets nothing through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from modelcast.errors import GateError, VersionNotFoundError
from modelcast.names import ModelRef
from modelcast.registry.image import VersionRecord

from . import gates
from .gates import NO_CHAMPION, Champion, GateReport
from .measures import CLASS_METRICS, VALUE_METRICS, Measured

if TYPE_CHECKING:
    from .evaluate import Champions, Evaluation
    from .hold import ModelView
    from .prepare import PreparedModel
    from .upload import Progress


class Gatekeeper:
    """Judges one candidate; callable as a `session.Gate`.

    Args:
        require: Requirements as `gates.parse` reads them.
        metrics: What the publisher states of the candidate.
        evaluation: Rows to measure on, with a way to the champion's files.
        more: Whether where the candidate is fetched from may know metrics of it.
        tell: Told each step as it begins.
        progress: Told the bytes of a champion being fetched.

    Raises:
        UsageError: A requirement can't be read, or is on a metric that nobody will state or measure.
    """

    def __init__(
        self,
        require: Sequence[str],
        metrics: Mapping[str, float],
        evaluation: tuple[Evaluation, Champions] | None = None,
        *,
        more: bool = False,
        tell: Callable[[str], None],
        progress: Progress,
    ) -> None:
        texts = (require,) if isinstance(require, str) else require
        self._requirements = [gates.parse(text) for text in texts]
        self._metrics = dict(metrics)
        self._evaluation = evaluation
        self._tell = tell
        self._progress = progress
        self._measured: Measured | None = None
        self._champions: dict[int, Measured] = {}
        expected = {*metrics, *gates.PROBED, *(CLASS_METRICS + VALUE_METRICS if evaluation else ())}
        for requirement in self._requirements if not more else ():
            gates.check_known(requirement, dict.fromkeys(expected, 0.0))

    def admit(self, prepared: PreparedModel) -> None:
        """Takes and measures what can be known of the candidate before the model's id is taken.

        Raises:
            UsageError, ModelRefusedError: As `Evaluation.score`.
        """
        self._metrics = {**prepared.metrics, **self._metrics}
        size_bytes = sum(entry.size for entry in prepared.files)
        self._metrics.update(gates.probe_metrics(prepared.probe, size_bytes))
        if self._evaluation is not None:
            self._tell("evaluate")
            self._measured = self._evaluation[0].score(prepared.directory, prepared.signature, "the candidate")
            self._metrics.update(self._measured.metrics)

    def __call__(self, seen: Callable[[], ModelView]) -> GateReport:
        """Judges the candidate; `seen` gives what consumers see, and is asked only if a requirement follows it.

        Raises:
            GateError, UsageError: As `gates.judge`; GateError also if nothing can be known of the live version.
            ModelcastError: Whatever reading the registry, and fetching and measuring a champion may raise.
        """
        measured = self._measured.metrics if self._measured else {}
        missing = self._measured.missing if self._measured else {}
        follows = any(requirement.is_relative for requirement in self._requirements)
        champion = self._champion(seen()) if follows else NO_CHAMPION
        return GateReport(measured, gates.judge(self._requirements, self._metrics, champion, missing=missing))

    def _champion(self, view: ModelView) -> Champion:
        record = self._live(view)
        if record is None:
            return NO_CHAMPION
        manifest = record.manifest
        stated = {**manifest.metrics, **gates.probe_metrics(manifest.probe, manifest.size_bytes)}
        own = self._measured.metrics if self._measured else {}
        if not any(requirement.is_relative and requirement.metric in own for requirement in self._requirements):
            return Champion(manifest.id, stated)
        found = self._measure(record)
        kept = {name: value for name, value in stated.items() if name not in own}
        return Champion(manifest.id, {**kept, **found.metrics}, found.missing)

    def _live(self, view: ModelView) -> VersionRecord | None:
        """The live version, if there is one."""
        live = view.entry.champion
        if live is None:
            return None
        try:
            return view.image.resolve(ModelRef(view.model, live.version))
        except VersionNotFoundError as error:
            first = next(requirement for requirement in self._requirements if requirement.is_relative)
            raise GateError(
                f"requirement '{first}' follows the champion, of which nothing is known: {error.message}",
                hint=f"See what is wrong with it with: modelcast show {view.model}@{live.version}; "
                "or compare with a number instead.",
            ) from error

    def _measure(self, record: VersionRecord) -> Measured:
        version = record.manifest.version
        if version not in self._champions:
            if self._evaluation is None:
                raise AssertionError
            evaluation, champions = self._evaluation
            self._tell(f"evaluate the champion {record.manifest.id}")
            with champions.fetched(record, lambda done, total: self._progress("fetch", done, total)) as folder:
                self._champions[version] = evaluation.score_champion(folder, record.manifest)
        return self._champions[version]
