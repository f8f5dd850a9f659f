"""What stands at the gate: the requirements of one publication, with what the candidate and the champion measure up to.

The gate is asked each time the model's id was taken, because the champion may be another by then. What was measured of
the candidate, and of a champion, is measured once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from modelcast.registry.image import ModelEntry, VersionRecord

from . import gates
from .gates import NO_CHAMPION, Champion, GateReport

if TYPE_CHECKING:
    from .prepare import PreparedModel


class Gatekeeper:
    """Judges one candidate; callable as a `session.Gate`.

    Args:
        require: Requirements as `gates.parse` reads them.
        metrics: What the publisher states of the candidate.

    Raises:
        UsageError: A requirement can't be read, or is on a metric that nobody will state or measure.
    """

    def __init__(self, require: Sequence[str], metrics: Mapping[str, float]) -> None:
        texts = (require,) if isinstance(require, str) else require
        self._requirements = [gates.parse(text) for text in texts]
        self._metrics = dict(metrics)
        for requirement in self._requirements:
            gates.check_known(requirement, {**dict.fromkeys(gates.PROBED, 0.0), **metrics})

    def admit(self, prepared: PreparedModel) -> None:
        """Takes what is known of the candidate, before the model's id is taken."""
        size_bytes = sum(entry.size for entry in prepared.files)
        self._metrics.update(gates.probe_metrics(prepared.probe, size_bytes))

    def __call__(self, entry: ModelEntry) -> GateReport:
        """Raises GateError, UsageError as `gates.judge`."""
        if not self._requirements:
            return GateReport()
        return GateReport({}, gates.judge(self._requirements, self._metrics, _champion(entry)))


def _champion(entry: ModelEntry) -> Champion:
    record = entry.versions.get(entry.champion.version) if entry.champion else None
    if not isinstance(record, VersionRecord):
        return NO_CHAMPION
    manifest = record.manifest
    return Champion(manifest.id, {**manifest.metrics, **gates.probe_metrics(manifest.probe, manifest.size_bytes)})
