"""Which models a scorer has, where the predictions of each go, and which events are for it. Pure.

Targets.of("fraud", "fraud-scores")
Targets.of(["fraud", "churn@3"], "{model}-scores")
Targets.of(["fraud", "churn"], {"fraud": "T1", "churn": "T2"})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelcast import digest
from modelcast.errors import UsageError
from modelcast.names import ModelRef

from .batches import EVENTS_MAX
from .routing import Routing

# Stands for a model's name in the name of its topic.
PLACEHOLDER = "{model}"
# The longest name of a group made from its parts. A group's name is part of a transactional id and of status records.
_GROUP_NAME_MAX_CHARS = 200
_DIGEST_CHARS = 12
_TOPICS_HINT = "Write TOPIC for all models, or MODEL=TOPIC for each."

Predictions = str | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """One model of a scorer, and the topic of its predictions."""

    ref: ModelRef
    topic: str


@dataclass(frozen=True, slots=True)
class Targets:
    """All models of a scorer, in the order they were named.

    Attributes:
        routing: Which of them scores an event; None where all do.
    """

    each: tuple[Target, ...]
    routing: Routing | None = None

    @classmethod
    def of(
        cls,
        models: str | Sequence[str],
        predictions: Predictions,
        *,
        route: str | None = None,
        routes: Mapping[str, str] | None = None,
    ) -> Targets:
        """Reads what a user says.

        Args:
            models: `NAME` or `NAME@VERSION`, one or several; those that routes lead to need not be named again.
            predictions: One topic for all, one with `{model}` in it, or `MODEL=TOPIC` for each (a list of these, or a
                mapping); one without a model is for all that are not named.
            route: The event field whose value says which model scores an event.
            routes: Value → model; without them, values are the models' names.

        Raises:
            UsageError: There is no model, or one twice; a model without a topic; a topic for no model; two versions of
                one model whose predictions could not be told apart; a route that leads nowhere.
        """
        if routes and route is None:
            raise UsageError("routes need a field to go by", hint="Add --route FIELD.")
        refs = [ModelRef.parse(name) for name in ([models] if isinstance(models, str) else models)]
        if len(set(refs)) < len(refs):
            raise UsageError(f"a model is named twice: {', '.join(map(str, refs))}", hint="Name each once.")
        led_to = {value: ModelRef.parse(name) for value, name in (routes or {}).items()}
        refs += [ref for ref in dict.fromkeys(led_to.values()) if ref not in refs]
        if not refs:
            raise UsageError("no model is named", hint="Write NAME, or NAME@VERSION.")
        topics = _topics(refs, _by_model(predictions))
        each = tuple(Target(ref, topic) for ref, topic in zip(refs, topics, strict=True))
        _check_apart(each)
        routing = None if route is None else Routing.of(route, led_to, refs)
        return cls(each, routing)

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        return tuple(target.ref for target in self.each)

    @property
    def topics(self) -> tuple[str, ...]:
        """Of predictions, each once."""
        return tuple(dict.fromkeys(target.topic for target in self.each))

    @property
    def batch_events(self) -> int:
        """Events of the largest batch: of as many predictions as one model's, so that several take no more memory."""
        return EVENTS_MAX if self.routing is not None else max(1, EVENTS_MAX // len(self.each))

    def dead_letters(self, events: str) -> str:
        """Where dead letters go if nobody says: beside the predictions; if these have several topics, the events."""
        return f"{self.topics[0] if len(self.topics) == 1 else events}.dead-letters"

    def group(self, prefix: str) -> str:
        """The consumer group if nobody names one: the same for the same models and topics, in whatever order."""
        models, topics = ("+".join(sorted(set(names))) for names in ((ref.model for ref in self.refs), self.topics))
        name = f"{prefix}.{models}.{topics}"
        if len(self.each) == 1 or len(name) <= _GROUP_NAME_MAX_CHARS:
            return name
        own = digest.of_bytes(name.encode()).rpartition(":")[2][:_DIGEST_CHARS]
        return f"{prefix}.{len(self.each)}-models.{own}"


def _by_model(predictions: Predictions) -> Mapping[str, str]:
    """Topic by model as the user named it; "" for all others."""
    if isinstance(predictions, Mapping):
        entries = list(predictions.items())
    else:
        named = [predictions] if isinstance(predictions, str) else predictions
        entries = [(model, topic) for model, _, topic in (entry.rpartition("=") for entry in named)]
    found: dict[str, str] = {}
    for model, topic in entries:
        if not topic:
            raise UsageError(f"{model + '=' if model else model!r} names no topic of predictions", hint=_TOPICS_HINT)
        name = str(ModelRef.parse(model)) if model else ""
        if found.setdefault(name, topic) != topic:
            whose = f"of {name}" if name else "of all models"
            raise UsageError(f"the predictions {whose} have two topics: {found[name]}, {topic}", hint=_TOPICS_HINT)
    return found


def _topics(refs: Sequence[ModelRef], by_model: Mapping[str, str]) -> list[str]:
    names = [str(ref) for ref in refs]
    if strangers := sorted(set(by_model).difference(names, {""})):
        raise UsageError(
            f"a topic is named for {', '.join(strangers)}, which this scorer does not have",
            hint=f"It has: {', '.join(names)}.",
        )
    topics = []
    for ref, name in zip(refs, names, strict=True):
        topic = by_model.get(name) or by_model.get("")
        if topic is None:
            raise UsageError(f"there is no topic for the predictions of {name}", hint=f"Add {name}=TOPIC.")
        topics.append(topic.replace(PLACEHOLDER, ref.model))
    return topics


def _check_apart(targets: Sequence[Target]) -> None:
    seen: dict[tuple[str, str], ModelRef] = {}
    for target in targets:
        other = seen.setdefault((target.ref.model, target.topic), target.ref)
        if other is not target.ref:
            raise UsageError(
                f"{other} and {target.ref} would both write to {target.topic!r}",
                hint="While they are the same version nobody could tell their predictions apart: give each its topic.",
            )
