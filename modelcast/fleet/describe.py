"""A fleet as JSON data, for `status --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from modelcast.fleet.fleet import Fleet, Instance, Problem, Rollout
from modelcast.records import ModelStatus


def describe_fleet(fleet: Fleet) -> dict[str, Any]:
    """The instances with their models, and what is wrong."""
    return {
        "at_ms": fleet.at_ms,
        "instances": [_instance(instance) for instance in fleet.instances],
        "problems": [describe_problem(problem) for problem in fleet.problems()],
    }


def describe_problem(problem: Problem) -> dict[str, Any]:
    """What is wrong, as JSON data."""
    return asdict(problem)


def describe_rollout(rollout: Rollout) -> dict[str, Any]:
    """How far a version has come."""
    return {
        "model": rollout.version.name,
        "version": rollout.version.version,
        "done": rollout.is_done,
        "live": list(rollout.live),
        "pending": [
            {"instance": name, "version": model.live_version, "state": model.state, **_next(model)}
            for name, model in rollout.pending
        ],
        "refused": [describe_problem(problem) for problem in rollout.refused],
        "aside": list(rollout.aside),
    }


def _instance(instance: Instance) -> dict[str, Any]:
    status = instance.status
    return {
        "instance": status.instance,
        "state": instance.presence,
        "host": status.host,
        "pid": status.pid,
        "role": status.role,
        "device": status.device,
        "runtime": dict(status.runtime),
        "started_ms": status.started_ms,
        "heard_ms": instance.heard_ms,
        "stale_ms": status.stale_ms,
        "models": [_model(model) for model in status.models],
    }


def _model(model: ModelStatus) -> dict[str, Any]:
    return {
        "model": model.model,
        "pinned": model.pinned,
        "version": model.live_version,
        "state": model.state,
        **_next(model),
        "stale": model.stale,
        "since_ms": model.since_ms,
        "load_ms": model.load_ms,
        "release_to_live_ms": model.release_to_live_ms,
        "swaps": model.swaps,
        "events": model.events,
        "events_per_s": model.events_per_s,
        "lag": model.lag,
        "dead_letters": model.dead_letters,
        "refusals": [asdict(refusal) for refusal in model.refusals],
    }


def _next(model: ModelStatus) -> dict[str, Any]:
    return {"wanted_version": model.wanted_version, "next_version": model.next_version, "next_state": model.next_state}
