"""The ACLs of each role: the one place that says who needs what of a cluster. Pure.

    publisher   publishes versions of models, releases them and rolls back
    operator    makes the repository (`init`), deletes versions, collects garbage
    producer    writes events (`send`)
    scorer      scores a topic of events
    client      uses models inside an application (`ModelClient`), or fetches them (`pull`)
    reader      reads events and predictions (`tail`)
    observer    looks at models and the fleet (`models`, `show`, `history`, `status`, `top`)
    dlq         looks at dead letters and sends their events back (`dlq list`, `dlq show`, `dlq replay`)

Each gets what it needs and nothing else: a scorer can't write to the registry, a publisher can't read events, only an
operator may make topics of the repository. Nobody needs anything of the cluster as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from modelcast.topics import Topics

from .acl import Acl, Operation, ResourceKind, topic

_READ, _WRITE = Operation.READ, Operation.WRITE
_CREATE, _CONFIGS = Operation.CREATE, Operation.DESCRIBE_CONFIGS

# A model's name that stands for all.
ALL_MODELS: Final = "*"


class Role(StrEnum):
    """What somebody is to a repository."""

    PUBLISHER = "publisher"
    OPERATOR = "operator"
    PRODUCER = "producer"
    SCORER = "scorer"
    CLIENT = "client"
    READER = "reader"
    OBSERVER = "observer"
    DLQ = "dlq"


def publisher(topics: Topics, models: Iterable[str] = (ALL_MODELS,)) -> tuple[Acl, ...]:
    """Publishes, releases, rolls back and signs these models.

    Args:
        topics: The repository's.
        models: Names; one that ends in `*` is all that begin so.
    """
    return (
        *topic(topics.registry, _READ, _WRITE, _CONFIGS),
        *topic(topics.schemas, _READ, _CONFIGS),
        *topic(topics.blobs, _READ, _WRITE, _CONFIGS),
        *(_transactional(topics.publisher_id(model)) for model in models),
    )


def operator(topics: Topics) -> tuple[Acl, ...]:
    """Makes the repository; deletes versions of any model and collects garbage."""
    return (
        *topic(topics.registry, _CREATE, _READ, _WRITE, _CONFIGS),
        *topic(topics.schemas, _CREATE, Operation.DESCRIBE, _CONFIGS),
        *topic(topics.blobs, _CREATE, _READ, _WRITE, _CONFIGS),
        *topic(topics.status, _CREATE, Operation.DESCRIBE),
        _transactional(topics.repository_id),
        _transactional(topics.publisher_id(ALL_MODELS)),
    )


def producer(topics: Topics, events: Sequence[str], *, create: bool = True) -> tuple[Acl, ...]:
    """Sends events; with `create` also to topics that are not there yet."""
    return (
        *(acl for name in events for acl in topic(name, *_writing(create=create))),
        *topic(topics.schemas, _READ, _WRITE),
    )


def scorer(
    topics: Topics,
    *,
    events: str,
    predictions: Sequence[str],
    dead_letters: str,
    group: str,
    exactly_once: bool = True,
    create: bool = True,
) -> tuple[Acl, ...]:
    """Scores a topic of events.

    Args:
        topics: The repository's.
        events: The topic of events.
        predictions: Topics of predictions.
        dead_letters: The topic of dead letters.
        group: The consumer group.
        exactly_once: Whether in transactions.
        create: Whether output topics that are not there are made.
    """
    return (
        *_follower(topics),
        *topic(topics.schemas, _READ, _WRITE, _CONFIGS),
        *topic(topics.status, _WRITE, _CONFIGS),
        *topic(events, _READ, _CONFIGS),
        *(acl for name in (*predictions, dead_letters) for acl in topic(name, *_writing(create=create))),
        Acl(ResourceKind.GROUP, group, _READ),
        # One for each instance: PREFIX.scorer.GROUP.INSTANCE.
        *((_transactional(f"{topics.prefix}.scorer.{group}.*"),) if exactly_once else ()),
    )


def client(topics: Topics) -> tuple[Acl, ...]:
    """Uses models inside an application, or fetches them."""
    return (*_follower(topics), *topic(topics.schemas, _READ, _CONFIGS), *topic(topics.status, _WRITE))


def reader(topics: Topics, names: Sequence[str]) -> tuple[Acl, ...]:
    """Reads events and predictions."""
    return (*(acl for name in names for acl in topic(name, _READ)), *topic(topics.schemas, _READ))


def observer(topics: Topics) -> tuple[Acl, ...]:
    """Looks at models and the fleet; changes nothing."""
    return (*_follower(topics), *topic(topics.schemas, _READ, _CONFIGS), *topic(topics.status, _READ))


def dlq(topics: Topics, *, dead_letters: str, events: Sequence[str]) -> tuple[Acl, ...]:
    """Looks at dead letters, and sends events back to where they came from (or to another topic)."""
    return (
        *topic(dead_letters, _READ),
        *topic(topics.schemas, _READ),
        *(acl for name in events for acl in topic(name, _WRITE, _CONFIGS)),
        Acl(ResourceKind.GROUP, f"{topics.prefix}.dlq.{dead_letters}", _READ),
        _transactional(f"{topics.prefix}.dlq.{dead_letters}"),
    )


def _follower(topics: Topics) -> tuple[Acl, ...]:
    return (*topic(topics.registry, _READ, _CONFIGS), *topic(topics.blobs, _READ, _CONFIGS))


def _writing(*, create: bool) -> tuple[Operation, ...]:
    return (_WRITE, _CONFIGS, *((_CREATE,) if create else ()))


def _transactional(pattern: str) -> Acl:
    prefixed = pattern.endswith("*")
    return Acl(ResourceKind.TRANSACTIONAL_ID, pattern.removesuffix("*"), _WRITE, prefixed=prefixed)
