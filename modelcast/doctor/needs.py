"""What somebody wants to do here, and what a cluster has to allow for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from modelcast.access import roles
from modelcast.access.acl import Acl
from modelcast.access.roles import Role
from modelcast.errors import UsageError
from modelcast.topics import Topics


@dataclass(frozen=True, slots=True)
class Tasks:
    """Models, and the topics they are used on."""

    models: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    dead_letters: str | None = None
    group: str | None = None

    @property
    def letters(self) -> str | None:
        """Where dead letters go: as `score` has it."""
        if self.dead_letters is None and len(self.predictions) == 1:
            return f"{self.predictions[0]}.dead-letters"
        if self.dead_letters is None and self.events and self.predictions:
            return f"{self.events[0]}.dead-letters"
        return self.dead_letters

    @property
    def outputs(self) -> tuple[str, ...]:
        """Topics that are written."""
        return (*self.predictions, *((self.letters,) if self.letters else ()))

    def groups(self, prefix: str) -> tuple[str, ...]:
        """The scorers' group: the one named, or the one that `score` takes for one model."""
        if self.group is not None:
            return (self.group,)
        if self.models and self.predictions:
            from modelcast.consumer.targets import Targets

            return (Targets.of(self.models, self.predictions).group(prefix),)
        return ()


def permissions(names: Iterable[str], tasks: Tasks, topics: Topics) -> tuple[Acl, ...]:
    """What these roles need.

    Raises:
        UsageError: A role is not known, or lacks the topics it is about.
    """
    makers: Final[Mapping[Role, Callable[[], tuple[Acl, ...]]]] = {
        Role.PUBLISHER: lambda: roles.publisher(topics, tasks.models or (roles.ALL_MODELS,)),
        Role.OPERATOR: lambda: roles.operator(topics),
        Role.PRODUCER: lambda: roles.producer(topics, _some(tasks.events, Role.PRODUCER, "--events")),
        Role.SCORER: lambda: _scorer(tasks, topics),
        Role.CLIENT: lambda: roles.client(topics),
        Role.READER: lambda: roles.reader(topics, _some((*tasks.events, *tasks.outputs), Role.READER, "--events")),
        Role.OBSERVER: lambda: roles.observer(topics),
        Role.DLQ: lambda: _dlq(tasks, topics),
    }
    needed: list[Acl] = []
    for name in names:
        if name not in set(Role):
            raise UsageError(f"{name!r} is no role", hint=f"Use one of: {', '.join(Role)}.")
        needed += makers[Role(name)]()
    return tuple(dict.fromkeys(needed))


def _scorer(tasks: Tasks, topics: Topics) -> tuple[Acl, ...]:
    events = _some(tasks.events, Role.SCORER, "--events")
    predictions = _some(tasks.predictions, Role.SCORER, "--predictions")
    groups = _some(tasks.groups(topics.prefix), Role.SCORER, "--model (or --group)")
    return roles.scorer(
        topics, events=events[0], predictions=predictions, dead_letters=tasks.letters or "", group=groups[0]
    )


def _dlq(tasks: Tasks, topics: Topics) -> tuple[Acl, ...]:
    letters = (tasks.letters,) if tasks.letters else ()
    return roles.dlq(
        topics,
        dead_letters=_some(letters, Role.DLQ, "--predictions (or --dead-letters)")[0],
        events=_some(tasks.events, Role.DLQ, "--events"),
    )


def _some(names: tuple[str, ...], role: Role, option: str) -> tuple[str, ...]:
    if not names:
        raise UsageError(f"what a {role} needs depends on what it is about", hint=f"Add {option}.")
    return names
