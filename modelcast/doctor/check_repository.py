"""Whether the repository can be read here, and whether all who run models are of versions that fit. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from modelcast.errors import AuthorizationError, ConfigError
from modelcast.fleet.fleet import Fleet
from modelcast.records import FORMAT_VERSION

from .findings import Finding, fault, ok, unknown, warning
from .mending import modelcast
from .sights import ClusterSight, Question, RepositorySight


def check_repository(question: Question, cluster: ClusterSight, repository: RepositorySight) -> Iterator[Finding]:
    """Format, models, and the fleet's versions."""
    error = repository.error
    if error is not None:
        registry = cluster.topics.get(f"{question.prefix}.registry")
        if registry is not None and registry.denied and question.needed:
            yield unknown("repository", "models could not be looked at: see acl")
        elif registry is not None:  # else `check_topics` has said so
            yield fault(_check_of(error), error.message, error.hint or modelcast(question, "init"))
        return
    yield ok("repository", f"repository {repository.uuid}, format {repository.format_version} of {FORMAT_VERSION}")
    if repository.newer:
        named = ", ".join(repository.newer[:3])
        yield warning(
            "version",
            f"a newer modelcast wrote records of {named}: they can't be read here",
            "pip install -U modelcast",
        )
    for name in repository.missing_models:
        yield fault(
            "model",
            f"the repository holds no model {name!r}",
            f"See those it holds with: {modelcast(question, 'models')}",
        )
    yield from _fleet(question, repository)


def _check_of(error: Exception) -> str:
    if isinstance(error, AuthorizationError):
        return "acl"
    return "version" if isinstance(error, ConfigError) else "repository"


def _fleet(question: Question, repository: RepositorySight) -> Iterator[Finding]:
    fleet = repository.fleet
    if fleet is None:
        why = "" if repository.fleet_error is None else f": {repository.fleet_error.message}"
        yield unknown("fleet", f"who runs what can't be read{why}")
        return
    if fleet.unreadable:
        yield warning(
            "version",
            f"the status of {', '.join(fleet.unreadable[:3])} can't be read here: a newer modelcast wrote it",
            "pip install -U modelcast",
        )
    runtimes = _runtimes(fleet)
    if len(runtimes) > 1:
        each = ", ".join(f"{version} on {count}" for version, count in sorted(runtimes.items()))
        yield warning(
            "version",
            f"running instances have different ONNX Runtimes ({each}): their predictions may differ in the last digits",
            f"Install one version everywhere; which has which: {modelcast(question, 'status', '--json')}",
        )
    problems = fleet.problems()
    running = sum(instance.is_running for instance in fleet.instances)
    told = f"{running} instance(s) run"
    if any(problem.kind != "unreadable" for problem in problems):
        yield warning("fleet", f"{told}, and {len(problems)} problem(s) are told", modelcast(question, "status"))
    else:
        yield ok("fleet", told)


def _runtimes(fleet: Fleet) -> Counter[str]:
    """How many running instances have which runtime."""
    return Counter(
        instance.status.runtime["onnxruntime"]
        for instance in fleet.instances
        if instance.is_running and "onnxruntime" in instance.status.runtime
    )
