"""Statuses for tests of the fleet, and the records that carry them."""

from __future__ import annotations

from modelcast import codec
from modelcast.log import LogRecord
from modelcast.records import InstanceStatus, ModelState, ModelStatus, Refusal

NOW_MS = 1_700_000_000_000
STATUS_TOPIC = "t.status"


def model(name: str = "fraud", version: int | None = 7, **facts: object) -> ModelStatus:
    """A model that is live in `version` since a minute, or waiting where that is None."""
    state = ModelState.WAITING if version is None else ModelState.LIVE
    since_ms = None if version is None else NOW_MS - 60_000
    given = {"pinned": None, "state": state, "live_version": version, "since_ms": since_ms, **facts}
    return ModelStatus(model=name, **given)  # type: ignore[arg-type]


def status(instance: str = "web-0", *models: ModelStatus, at_ms: int = NOW_MS, **facts: object) -> InstanceStatus:
    given = {"repository": "r", "host": "web", "pid": 1, "role": "scorer", "device": "cpu", "runtime": {}, **facts}
    return InstanceStatus(instance=instance, at_ms=at_ms, models=models, **given)  # type: ignore[arg-type]


def record(said: InstanceStatus, *, offset: int = 0, key: bytes | None = None) -> LogRecord:
    name = said.instance.encode() if key is None else key
    return LogRecord(STATUS_TOPIC, 0, offset, said.at_ms, name, codec.encode_status(said))


def refusal(version: int = 8, reason: str = "golden", *, at_ms: int = NOW_MS - 1_000) -> Refusal:
    return Refusal(version, reason, f"version {version} is not right", at_ms)
