"""What fields events have, by their paths: a model is bound by it before it scores the first event."""

from __future__ import annotations

from typing import Any

import pytest

from modelcast.avro import Schema
from modelcast.consumer.binding import Binding, EventFields
from modelcast.consumer.event_fields import MAX_FIELDS, json_said, schema_kinds
from modelcast.errors import BindingError
from modelcast.records import DType, InputBinding, NullRule, Signature
from modelcast.tensors import FieldSpec


def record(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def of(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


CARD = record("Card", of("country", "string"), of("limits", {"type": "array", "items": "int"}))


def test_fields_of_records_are_told_by_their_paths() -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    schema = Schema.parse(record("E", of("card", ["null", CARD]), of("other", "Card"), of("price", decimal)))
    assert schema_kinds(schema) == {
        "card": "other", "card.country": "string", "card.limits": "array of int",
        "other": "other", "other.country": "string", "other.limits": "array of int", "price": "double",
    }  # fmt: skip


def test_records_that_contain_themselves_or_multiply_come_to_an_end() -> None:
    tree = record("Tree", of("left", ["null", "Tree"]), of("right", ["null", "Tree"]), of("value", "long"))
    kinds = schema_kinds(Schema.parse(tree))
    assert kinds["left.right.value"] == "long"
    wide = record("Wide", *(of(f"f{place}", ["null", "Wide"]) for place in range(20)))
    assert len(schema_kinds(Schema.parse(wide))) == MAX_FIELDS


def test_the_event_schema_names_defaults_and_widens() -> None:
    writer = Schema.parse(record("E", of("betrag", "int"), of("card", CARD), of("extra", "boolean")))
    card = record("Card", of("land", "string", aliases=["country"]), of("since", "int", default=0))
    reader = record("E", of("amount", "double", aliases=["betrag"]), of("card", card), of("gone", "string"))
    kinds = schema_kinds(writer, Schema.parse(reader))
    assert kinds["amount"] == "double"
    assert kinds["card.land"] == "string"
    assert kinds["card.since"] == "int"
    assert kinds["extra"] == "boolean"
    assert "gone" not in kinds


def test_json_tells_paths_and_a_key_at_the_top_goes_before() -> None:
    said = json_said(b'{"a": {"b": 1, "c": {"d": "x"}}, "a.b": "top", "n": null}')
    assert said is not None
    assert said.kinds == {"a": "other", "a.b": "string", "a.c": "other", "a.c.d": "string"}


def test_json_has_the_names_and_defaults_of_the_event_schema() -> None:
    inner = record("In", of("x", "long", aliases=["y"]), of("z", "string", default=""))
    reader = Schema.parse(record("E", of("a", inner, aliases=["b"]), of("flag", "boolean", default=True)))
    said = json_said(b'{"b": {"y": 1}}', reader)
    assert said is not None
    assert {name: said.kinds[name] for name in ("a.x", "a.z", "flag")} == {
        "a.x": "long", "a.z": "string", "flag": "boolean",
    }  # fmt: skip


def signature(*nulls: NullRule) -> Signature:
    inputs = (
        InputBinding("x", DType.FLOAT32, (None, 2), ("amount", "card.limit")),
        InputBinding("c", DType.STRING, (None, 1), ("card.country",)),
    )
    return Signature(inputs, (), nulls)


def test_a_field_that_may_be_null_need_not_be_there() -> None:
    fields = EventFields({"amount": "double", "card.limit": "long"}, "topic tx")
    Binding(signature(NullRule("card.country", "??"))).check(fields)
    with pytest.raises(BindingError, match="'card.country'"):
        Binding(signature(NullRule("amount", "nan"))).check(fields)


def test_a_binding_asks_for_fields_with_what_null_counts_as() -> None:
    bound = Binding(signature(NullRule("card.country", ""), NullRule("amount", "nan")))
    assert bound.specs == (
        FieldSpec("amount", DType.FLOAT32, null="nan"),
        FieldSpec("card.limit", DType.FLOAT32),
        FieldSpec("card.country", DType.STRING, null=""),
    )


@pytest.mark.parametrize(("field", "value"), [("amount", "many"), ("amount", "1e39")])
def test_a_signature_whose_null_is_no_value_is_refused(field: str, value: str) -> None:
    with pytest.raises(BindingError, match=f"field '{field}'"):
        Binding(signature(NullRule(field, value)))
