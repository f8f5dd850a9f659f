"""Which model an event is for, by the value of one of its fields. Pure.

- `DE=fraud-de,US=fraud-us` names a model for each value; `*=fraud` is for every other event, also one that lacks the
  field. Without any, the value itself is a model's name.
- The field is a string or an enum; where all routes are of integers, an integer.
- An event that no model is named for is a dead letter: `NoRoute`.

    routing = Routing.of("country", {"DE": ModelRef("fraud-de"), "US": ModelRef("fraud-us")}, refs)
    routing.places(np.array(["DE", "FR"], object))  # [0, -1]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

from modelcast.errors import UsageError
from modelcast.names import ModelRef
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .decode.cursor import Array, Mask
from .decode.result import Result
from .decode.rules import PoisonEvent

# Why an event that no model is named for is poison.
NO_ROUTE = "NoRoute"
# What stands for every value that has no route of its own.
ANY = "*"
# Where an event goes that no model is named for.
NOWHERE = -1
# As people write them: a route of 007 is one of a text.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
# A value is quoted so far in a dead letter's message.
_QUOTED_CHARS = 100


@dataclass(frozen=True, slots=True)
class Routing:
    """Routes by the value of `field`; made by `of`.

    Attributes:
        by_value: The place of a model among the scorer's, by value.
        otherwise: The place for every other event; `NOWHERE` if there is none.
    """

    field: str
    by_value: Mapping[str | int, int]
    otherwise: int = NOWHERE

    @classmethod
    def of(cls, field: str, routes: Mapping[str, ModelRef], refs: Sequence[ModelRef]) -> Routing:
        """Checks routes against the scorer's models.

        Args:
            field: The event field.
            routes: Value → model; empty where values are the models' names.
            refs: The scorer's models.

        Raises:
            UsageError: A route leads to none of them, or no route to one of them.
        """
        if not field:
            raise UsageError("a route needs the name of an event field", hint="Write --route FIELD.")
        wanted = routes or {ref.model: ref for ref in refs}
        for value, ref in wanted.items():
            if ref not in refs:
                known = ", ".join(map(str, refs))
                raise UsageError(f"the route {value}={ref} leads to no model of this scorer", hint=f"It has: {known}.")
        if unreached := [str(ref) for ref in refs if ref not in wanted.values()]:
            raise UsageError(
                f"no route leads to {', '.join(unreached)}", hint=f"Name one, or {ANY}=MODEL for every other event."
            )
        otherwise = refs.index(wanted[ANY]) if ANY in wanted else NOWHERE
        texts = {value: refs.index(ref) for value, ref in wanted.items() if value != ANY}
        if texts and all(map(_INTEGER.fullmatch, texts)):
            return cls(field, {int(value): place for value, place in texts.items()}, otherwise)
        return cls(field, dict[str | int, int](texts.items()), otherwise)

    @property
    def spec(self) -> FieldSpec:
        """The field as events are decoded for it."""
        return FieldSpec(self.field, DType.INT64 if self._takes_integers else DType.STRING)

    def places(self, values: Array) -> npt.NDArray[np.int64]:
        """The place of the model for each value; `NOWHERE` where there is none."""
        found = map(self.by_value.get, values.tolist(), repeat(self.otherwise))
        return np.fromiter(found, np.int64, len(values))

    def no_route(self, value: object) -> str:
        """What a dead letter says of an event with this value."""
        shown = repr(value[:_QUOTED_CHARS]) if isinstance(value, str) else str(value)
        return f"field {self.field!r} is {shown}, and no model is named for that"

    @property
    def _takes_integers(self) -> bool:
        return any(isinstance(value, int) for value in self.by_value)


def parse_routes(routes: Iterable[str]) -> dict[str, str]:
    """`VALUE=MODEL[, VALUE=MODEL…]`, any number of them, as a mapping. Raises UsageError."""
    found: dict[str, str] = {}
    for entry in chain.from_iterable(one.split(",") for one in routes):
        value, equals, model = entry.strip().partition("=")
        if not value or not equals or not model:
            raise UsageError(f"{entry!r} is no route", hint="Write VALUE=MODEL, with commas between several.")
        if found.setdefault(value, model) != model:
            raise UsageError(f"value {value!r} has two routes", hint=f"{value}={found[value]} and {value}={model}.")
    return found


def routed(result: Result, routing: Routing, count: int, models: int) -> tuple[list[Mask], list[PoisonEvent]]:
    """Which of a batch's events are for which model, and those that are for none."""
    found = result.part([routing.spec])
    values = found.columns[routing.field]
    places = np.full(count, NOWHERE, np.int64)
    places[found.rows] = routing.places(values)
    lost = [
        PoisonEvent(int(found.rows[at]), NO_ROUTE, routing.no_route(values[at]))
        for at in np.flatnonzero(places[found.rows] == NOWHERE).tolist()
    ]
    if routing.otherwise == NOWHERE:
        lost += [
            PoisonEvent(event.index, NO_ROUTE, f"no model can be chosen: {event.message}") for event in found.poison
        ]
    else:
        places[[event.index for event in found.poison]] = routing.otherwise
    return [places == place for place in range(models)], lost
