"""What somebody wants to do with a repository, as options say it, and the ACLs that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelcast.errors import UsageError
from modelcast.topics import Topics

from . import roles
from .acl import Acl
from .roles import Role


@dataclass(frozen=True, slots=True)
class Tasks:
    """Models, and the topics they are used on.

    Attributes:
        models: Names; of a publisher also `fraud-*` for all that begin so.
        events: Topics of events.
        predictions: Topics of predictions, as `score` takes them.
        dead_letters: Their topic, where it is not the one that `score` takes by itself.
        group: The scorers' group, where it is not the one that `score` takes by itself.
        exactly_once: Whether scorers work in transactions.
        create: Whether topics of events and predictions that are not there are made.
    """

    models: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    dead_letters: str | None = None
    group: str | None = None
    exactly_once: bool = True
    create: bool = True

    @property
    def outputs(self) -> tuple[str, ...]:
        """Topics that scorers write predictions to."""
        if self._are_scored:
            from modelcast.consumer.targets import Targets

            return Targets.of(self.models, self.predictions).topics
        return tuple(topic.rpartition("=")[2] for topic in self.predictions)

    @property
    def letters(self) -> str | None:
        """Where dead letters go: as `score` has it."""
        if self.dead_letters is not None or not self.predictions:
            return self.dead_letters
        if len(self.outputs) == 1:
            return f"{self.outputs[0]}.dead-letters"
        return f"{self.events[0]}.dead-letters" if self.events else None

    def group_in(self, prefix: str) -> str | None:
        """The scorers' group: the one named, or the one that `score` takes by itself."""
        if self.group is None and self._are_scored:
            from modelcast.consumer.targets import Targets

            return Targets.of(self.models, self.predictions).group(prefix)
        return self.group

    @property
    def _are_scored(self) -> bool:
        named = self.models and not any(model.endswith(roles.ALL_MODELS) for model in self.models)
        return bool(named and self.predictions)


def permissions(names: Iterable[str], tasks: Tasks, topics: Topics) -> tuple[Acl, ...]:
    """What these roles need, each ACL once.

    Raises:
        UsageError: A role is not known, or lacks the topics it is about.
    """
    makers: Final[Mapping[Role, Callable[[], tuple[Acl, ...]]]] = {
        Role.PUBLISHER: lambda: roles.publisher(topics, tasks.models or (roles.ALL_MODELS,)),
        Role.OPERATOR: lambda: roles.operator(topics),
        Role.PRODUCER: lambda: roles.producer(
            topics, _some(tasks.events, Role.PRODUCER, "--events"), create=tasks.create
        ),
        Role.SCORER: lambda: _scorer(tasks, topics),
        Role.CLIENT: lambda: roles.client(topics),
        Role.READER: lambda: roles.reader(
            topics, _some((*tasks.events, *tasks.outputs), Role.READER, "--events or --predictions")
        ),
        Role.OBSERVER: lambda: roles.observer(topics),
        Role.DLQ: lambda: roles.dlq(
            topics,
            dead_letters=_one(tasks.letters, Role.DLQ, "--dead-letters (or --predictions)"),
            events=_some(tasks.events, Role.DLQ, "--events"),
        ),
    }
    needed: list[Acl] = []
    for name in names:
        if name not in set(Role):
            raise UsageError(f"{name!r} is no role", hint=f"Use one of: {', '.join(Role)}.")
        needed += makers[Role(name)]()
    return tuple(dict.fromkeys(needed))


def _scorer(tasks: Tasks, topics: Topics) -> tuple[Acl, ...]:
    (events, *others) = _some(tasks.events, Role.SCORER, "--events")
    if others:
        raise UsageError("a scorer reads one topic of events", hint="Name one: --events TOPIC")
    predictions = _some(tasks.outputs, Role.SCORER, "--predictions")
    return roles.scorer(
        topics,
        events=events,
        predictions=predictions,
        dead_letters=_one(tasks.letters, Role.SCORER, "--dead-letters"),
        group=_one(tasks.group_in(topics.prefix), Role.SCORER, "--model (or --group)"),
        exactly_once=tasks.exactly_once,
        create=tasks.create,
    )


def _some(names: Sequence[str], role: Role, option: str) -> Sequence[str]:
    if not names:
        raise UsageError(f"what a {role} needs depends on what it is about", hint=f"Add {option}.")
    return names


def _one(name: str | None, role: Role, option: str) -> str:
    return _some(() if name is None else (name,), role, option)[0]
