"""Records within records, null rules, logical types and the event schema: each event as the reference has it."""

from __future__ import annotations

import datetime
import decimal
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer.decode import json_lines
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.decode.formats import EventFormat, Formats
from modelcast.consumer.decode.wanted import wanted_of
from modelcast.errors import SourceError
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .decode_checks import Schemas, check, damaged, specs_of

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FLOAT, LONG, INT, TEXT, FLAG = DType.FLOAT64, DType.INT64, DType.INT32, DType.STRING, DType.BOOL

Case = tuple[Any, st.SearchStrategy[Any]]

SYMBOLS = ["A", "B", "C"]
# Each with what its data are before logical types are looked at: fastavro takes them so.
LEAVES: list[Case] = [
    ("boolean", st.booleans()),
    ("int", st.integers(-(2**31), 2**31 - 1)),
    ("long", st.integers(-(2**63), 2**63 - 1)),
    ("float", st.floats(width=32)),
    ("double", st.floats()),
    ("double", st.floats(allow_nan=False, allow_infinity=False)),
    ("string", st.text(max_size=9)),
    ("bytes", st.binary(max_size=9)),
    ({"type": "enum", "name": "E", "symbols": SYMBOLS}, st.sampled_from(SYMBOLS)),
    ({"type": "array", "items": "int"}, st.lists(st.integers(-9, 9), min_size=2, max_size=4)),
    ({"type": "array", "items": ["null", "float"]}, st.lists(st.floats(width=32), min_size=3, max_size=4)),
    ({"type": "long", "logicalType": "timestamp-millis"}, st.integers(-(2**62), 2**62)),
    ({"type": "long", "logicalType": "timestamp-micros"}, st.integers(-(2**62), 2**62)),
    ({"type": "int", "logicalType": "date"}, st.integers(-(2**20), 2**20)),
    ({"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 4}, st.binary(max_size=12)),
]
PATHS = ["f0", "f1", "f0.f0", "f1.f0", "f0.f1", "f1.f1.f0", "f0.f0.f1"]


def plain(schema: Any) -> Any:
    """Without logical types: what is written is the same, and its writer does not change the data."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: plain(held) if key in ("type", "items", "fields") else held for key, held in schema.items()
            if key not in ("logicalType", "precision", "scale")}  # fmt: skip


@st.composite
def shapes(draw: st.DrawFn, name: str, depth: int) -> Case:
    """A type with data of it; records with a single enum of each name."""
    kind = draw(st.sampled_from(["leaf", "leaf", "optional"] + ["record", "record", "maybe"] * (depth > 0)))
    leaf, data = draw(st.sampled_from(LEAVES))
    if isinstance(leaf, dict) and "name" in leaf:
        leaf = {**leaf, "name": f"{name}_E"}
    if kind == "leaf":
        return leaf, data
    if kind == "optional":
        return draw(st.permutations(["null", leaf])), st.none() | data
    record, rows = draw(nested(name, depth - 1))
    return (record, rows) if kind == "record" else (draw(st.permutations(["null", record, "string"])), st.none() | rows)


@st.composite
def nested(draw: st.DrawFn, name: str, depth: int = 2) -> Case:
    parts = {f"f{place}": draw(shapes(f"{name}_{place}", depth)) for place in range(draw(st.integers(1, 3)))}
    fields = [{"name": field, "type": inner} for field, (inner, _) in parts.items()]
    data = st.fixed_dictionaries({field: rows for field, (_, rows) in parts.items()})
    return {"type": "record", "name": name, "fields": fields}, data


def written(definition: Any, data: Sequence[Any]) -> tuple[Schema, list[bytes]]:
    """Events of a schema, from data before logical types."""
    schema, raw = Schema.parse(definition), Schema.parse(plain(definition))
    return schema, [schema.frame + raw.encode(datum) for datum in data]


@SETTINGS
@given(st.data())
def test_fields_within_records_are_what_each_event_says(data: st.DataObject) -> None:
    writers = [data.draw(nested(name)) for name in ["First", "Second"][: data.draw(st.integers(1, 2))]]
    schemas, values = [], list[bytes | None]()
    for definition, rows in writers:
        schema, some = written(definition, data.draw(st.lists(rows, min_size=1, max_size=6)))
        schemas.append(schema)
        values += some
    values = data.draw(st.permutations(values))
    values = [data.draw(damaged(value)) if value and data.draw(st.integers(0, 3)) == 0 else value for value in values]
    check(values, data.draw(specs_of(PATHS)), Schemas(*schemas))


@st.composite
def evolved(draw: st.DrawFn, schema: Any, name: str) -> Any:
    """A schema somebody else has of the same events: renamed, dropped, new and widened fields."""
    if isinstance(schema, list):
        branches = [draw(evolved(branch, f"{name}_{place}")) for place, branch in enumerate(schema)]
        # Not two arrays, nor two of any other nameless type.
        return branches if len({json.dumps(one) for one in branches}) == len(branches) else schema
    if isinstance(schema, dict) and schema["type"] == "record":
        return {**schema, "fields": draw(evolved_fields(schema["fields"], name))}
    if isinstance(schema, dict) and schema["type"] == "enum":
        fallback = draw(st.sampled_from([{}, {"default": "B"}]))
        return {**schema, "symbols": draw(st.sampled_from([SYMBOLS, ["B", "A"], ["B"]])), **fallback}
    if isinstance(schema, dict) and schema["type"] == "array":
        return {**schema, "items": draw(st.sampled_from([schema["items"], "long", "double"]))}
    wider = {"int": ["long", "float", "double"], "long": ["int", "float"], "float": ["double"], "string": ["bytes"],
             "bytes": ["string"], "double": ["float"]}.get(schema if isinstance(schema, str) else "", [])  # fmt: skip
    unplain = [plain(schema)["type"]] if isinstance(schema, dict) and "logicalType" in schema else []
    return draw(st.sampled_from([schema, schema, *wider, *unplain]))


@st.composite
def evolved_fields(draw: st.DrawFn, fields: Sequence[Any], name: str) -> list[Any]:
    found = []
    for field in fields:
        inner = draw(evolved(field["type"], f"{name}_{field['name']}"))
        kind = draw(st.sampled_from(["same", "same", "renamed", "dropped"]))
        if kind == "same":
            found.append({"name": field["name"], "type": inner})
        elif kind == "renamed":
            found.append({"name": f"n{field['name']}", "aliases": ["zzz", field["name"]], "type": inner})
    new = [
        {"name": "f3", "type": "long", "default": 5},
        {"name": "f4", "type": ["null", "string"], "default": None},
        {"name": "f5", "type": {"type": "record", "name": f"{name}_N", "fields": [
            {"name": "f0", "type": "double", "default": 1}, {"name": "f1", "type": "boolean"}]},
         "default": draw(st.sampled_from([{"f1": True}, {"f0": 2.5, "f1": False}]))},
        {"name": "f6", "type": {"type": "array", "items": "float"}, "default": [1, 2.5, 3]},
        {"name": "f7", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
         "default": "\u0001\u00ff"},
    ]  # fmt: skip
    return found + draw(st.lists(st.sampled_from(new), max_size=3, unique_by=lambda field: field["name"]))


EVOLVED = [
    *PATHS,
    "nf0",
    "nf1",
    "nf0.f0",
    "f1.nf0",
    "f3",
    "f4",
    "f5",
    "f5.f0",
    "f5.f1",
    "f6",
    "f7",
    "f0.f3",
    "f1.f5.f0",
]


@SETTINGS
@given(st.data())
def test_an_event_schema_resolves_what_writers_wrote(data: st.DataObject) -> None:
    definition, rows = data.draw(nested("Event"))
    older, some = written(definition, data.draw(st.lists(rows, min_size=1, max_size=5)))
    newer, more = written({"type": "record", "name": "Event", "fields": definition["fields"][:1]}, [])
    event_schema = Schema.parse(data.draw(evolved(definition, "Event")))
    assert not more
    check(some, data.draw(specs_of(EVOLVED)), Schemas(older, newer), event_schema)


JSON_NAMES = ["f0", "f1", "f0.f0", "f0.f1", "f1.f0", "f0.f0.f1", "fä.f0"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.lists(st.integers(-9, 9), min_size=2, max_size=4)
)
OBJECTS = st.recursive(
    SCALARS, lambda inner: st.dictionaries(st.sampled_from(["f0", "f1", "f2", "x"]), inner, max_size=4), max_leaves=8
)
JSON_EVENT_SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "f0", "aliases": ["x", "f2"], "default": {"f1": 7}, "type":
            {"type": "record", "name": "Inner", "fields": [
                {"name": "f0", "aliases": ["x"], "type": ["null", "string"], "default": None},
                {"name": "f1", "type": "long"}]}},
        {"name": "f1", "type": ["double", "Inner"], "default": 1.5},
    ],
}  # fmt: skip


@pytest.fixture(params=[2, 10**6], ids=["together", "alone"])
def rows_read_together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(json_lines, "MIN_ROWS", request.param)
    monkeypatch.setattr(json_lines, "BLOCK_ROWS", 3)
    return request.param


TELLING = st.sampled_from(b' \n"\\{}[],:0123456789.eE+-truefalsnI\xff')


@settings(SETTINGS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_json_within_json_is_read_together_as_alone(rows_read_together: int, data: st.DataObject) -> None:
    """Few shapes with many events of each: values of another kind, a null, damage and another order now and then."""
    outline = st.dictionaries(st.sampled_from(["f0", "f1", "f0.f0", "fä", "x"]), OBJECTS)
    outlines = data.draw(st.lists(outline, min_size=1, max_size=2))
    event_schema = data.draw(st.sampled_from([None, Schema.parse(JSON_EVENT_SCHEMA)]))
    values: list[bytes | None] = []
    for _ in range(data.draw(st.integers(2, 8))):
        event = varied(data, data.draw(st.sampled_from(outlines)))
        value = json.dumps(event, separators=data.draw(st.sampled_from([(",", ":"), (", ", ": ")]))).encode()
        values.append(data.draw(damaged(value, TELLING)) if data.draw(st.integers(0, 5)) == 0 else value)
    check(values, data.draw(specs_of(JSON_NAMES)), Schemas(), event_schema)


def varied(data: st.DataObject, held: Any) -> Any:
    """The same shape, mostly."""
    if isinstance(held, dict):
        return {name: varied(data, inner) for name, inner in held.items()}
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(SCALARS)
    if isinstance(held, float):
        return data.draw(st.floats(allow_nan=False, allow_infinity=False))
    return held


def event_of(*fields: Any, **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Event", "fields": [*fields], **more}


def of_type(kind: Any, name: str = "a") -> dict[str, Any]:
    return {"name": name, "type": kind}


def decoded(specs: Sequence[FieldSpec], definition: Any, data: Sequence[Any], reader: Any = None) -> Any:
    """Columns and words, compared with the reference on the way."""
    schema = Schema.parse(definition)
    values = [schema.encode_single_object(datum) for datum in data]
    batch = check(values, specs, Schemas(schema), None if reader is None else Schema.parse(reader))
    return [column.tolist() for column in batch.columns.values()], [event.error for event in batch.poison]


NOON = datetime.datetime(2024, 5, 17, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
NOON_MS = 1_715_947_200_250


@pytest.mark.parametrize("unit", ["timestamp-millis", "timestamp-micros", "local-timestamp-micros"])
def test_a_stream_that_goes_over_to_another_unit_changes_nothing(unit: str) -> None:
    kind = {"type": "long", "logicalType": unit}
    when = NOON.replace(tzinfo=None) if unit.startswith("local") else NOON
    found, _ = decoded([FieldSpec("a", LONG)], event_of(of_type(["null", kind])), [{"a": when}] * 3)
    assert found == [[NOON_MS] * 3]


def test_floats_keep_what_integers_of_a_time_round_down() -> None:
    schema = event_of(of_type({"type": "long", "logicalType": "timestamp-micros"}), of_type("long", "b"))
    early = datetime.datetime(1969, 12, 31, 23, 59, 59, 999_500, tzinfo=datetime.UTC)
    specs = [FieldSpec("a", LONG)], [FieldSpec("a", FLOAT)]
    assert decoded(specs[0], schema, [{"a": early, "b": 0}])[0] == [[-1]]
    assert decoded(specs[1], schema, [{"a": early, "b": 0}])[0] == [[-0.5]]


def test_times_and_dates_are_milliseconds_and_days() -> None:
    schema = event_of(
        of_type({"type": "int", "logicalType": "date"}), of_type({"type": "long", "logicalType": "time-micros"}, "b")
    )
    row = {"a": datetime.date(1970, 1, 11), "b": datetime.time(0, 0, 1)}
    assert decoded([FieldSpec("a", INT), FieldSpec("b", FLOAT)], schema, [row])[0] == [[10], [1000.0]]


@pytest.mark.parametrize("scale", [0, 2, 18, 25])
@pytest.mark.parametrize("fixed", [None, 16])
def test_decimals_are_the_nearest_floats(scale: int, fixed: int | None) -> None:
    base = "bytes" if fixed is None else {"type": "fixed", "name": "F", "size": fixed}
    kind = {**({"type": "bytes"} if fixed is None else base), "logicalType": "decimal", "precision": 38, "scale": scale}  # type: ignore[dict-item]
    numbers = [0, 1, -1, 7, 2**53, 2**53 + 1, -(10**30), 123456789012345678901234567890, -(2**63), 2**63]
    rows = [{"a": decimal.Decimal(number).scaleb(-scale, decimal.Context(prec=60))} for number in numbers]
    found, _ = decoded([FieldSpec("a", FLOAT)], event_of(of_type(kind)), rows)
    assert found == [[float(row["a"]) for row in rows]]


def test_a_field_that_the_event_schema_gives_the_plain_type_is_as_it_is_written() -> None:
    micros = event_of(of_type({"type": "long", "logicalType": "timestamp-micros"}))
    assert decoded([FieldSpec("a", LONG)], micros, [{"a": NOON}], event_of(of_type("long")))[0] == [[NOON_MS * 1000]]


NULLS = [
    (DType.FLOAT32, "double", "nan", float("nan")),
    (DType.FLOAT64, "float", "-1.5", -1.5),
    (DType.INT32, "int", "7", 7),
    (DType.UINT8, "long", "255", 255),
    (DType.BOOL, "boolean", "true", True),
    (DType.STRING, "string", "", ""),
]


@pytest.mark.parametrize(("dtype", "kind", "text", "value"), NULLS)
def test_null_and_what_is_missing_count_as_the_model_says_and_are_poison_where_it_says_nothing(
    dtype: DType, kind: str, text: str, value: Any
) -> None:
    schema = event_of(of_type(["null", kind]), of_type(["null", {**event_of(of_type(kind)), "name": "In"}], "b"))
    rows = [{"a": None, "b": None}]
    for path in ("a", "b.a", "c", "b.c"):
        ruled, _ = decoded([FieldSpec(path, dtype, null=text)], schema, rows)
        np.testing.assert_array_equal(ruled, [[value]])
        _, poison = decoded([FieldSpec(path, dtype)], schema, rows)
        assert poison == ["MissingField" if path == "c" else "NullField"]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (DType.INT32, "nan"),
        (DType.INT32, "2147483648"),
        (DType.BOOL, "0"),
        (DType.FLOAT32, "1e39"),
        (DType.UINT8, "-1"),
    ],
)
def test_null_counts_as_nothing_the_field_can_not_hold(dtype: DType, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        FieldSpec("a", dtype, null=text)
    with pytest.raises(ValueError, match="whole row"):
        FieldSpec("a", DType.FLOAT32, (2,), null="0")


INNER = {"type": "record", "name": "Card", "fields": [
    {"name": "country", "aliases": ["land"], "type": "string", "default": "??"},
    {"name": "limit", "type": ["null", "double"], "default": None}]}  # fmt: skip
READER = event_of(
    {"name": "card", "type": INNER, "default": {"country": "DE"}},
    {"name": "amount", "aliases": ["betrag"], "type": "double"},
    {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "OTHER"], "default": "OTHER"}},
)
EVERYTHING = [FieldSpec("card.country", TEXT), FieldSpec("card.limit", FLOAT, null="nan"), FieldSpec("amount", FLOAT),
              FieldSpec("kind", TEXT)]  # fmt: skip


def test_four_generations_of_a_stream_in_one_batch() -> None:
    """The default of each level, aliases, promotions and an enum that grew, resolved event by event."""
    kind = {"type": "enum", "name": "Kind", "symbols": ["A", "NEW"]}
    card = {"type": "record", "name": "Card", "fields": [{"name": "land", "type": "string"}]}
    bare = ["null", {**card, "fields": []}]
    generations: list[tuple[Any, Any]] = [
        (event_of(of_type("int", "betrag"), of_type(kind, "kind")), {"betrag": 3, "kind": "A"}),
        (event_of(of_type("float", "amount"), of_type(kind, "kind"), of_type(card, "card")),
         {"amount": 0.5, "kind": "NEW", "card": {"land": "FR"}}),
        (event_of(of_type(bare, "card"), of_type("long", "amount"), of_type("string", "kind")),
         {"card": {}, "amount": 2, "kind": "text"}),
        (event_of(of_type(bare, "card"), of_type("double", "amount"), of_type(kind, "kind")),
         {"card": None, "amount": 4, "kind": "A"}),
    ]  # fmt: skip
    schemas = [Schema.parse(definition) for definition, _ in generations]
    values = [schema.encode_single_object(row) for schema, (_, row) in zip(schemas, generations, strict=True)] * 50
    batch = check(values, EVERYTHING, Schemas(*schemas), Schema.parse(READER))
    assert batch.columns["card.country"].tolist() == ["DE", "FR", "??"] * 50
    assert batch.columns["amount"].tolist() == [3.0, 0.5, 2.0] * 50
    assert batch.columns["kind"].tolist() == ["A", "OTHER", "text"] * 50
    assert np.isnan(batch.columns["card.limit"]).all()
    assert {event.error for event in batch.poison} == {"NullField"}


def test_a_default_without_fields_gives_a_field_none() -> None:
    reader = event_of({"name": "a", "type": ["double", INNER], "default": 1.5}, {**of_type(["null", "Card"], "b"),
                      "default": None})  # fmt: skip
    for path, word in (("a.limit", "WrongType"), ("b.limit", "NullField")):
        assert decoded([FieldSpec(path, FLOAT)], event_of(of_type("int", "x")), [{"x": 1}], reader)[1] == [word]


def test_json_takes_the_aliases_and_defaults_of_the_event_schema_too() -> None:
    events = [b'{"amount":1,"kind":"A"}', b'{"betrag":2,"kind":"B","card":{"land":"FR","limit":5}}',
              b'{"amount":3,"kind":"A","card":{}}'] * 100  # fmt: skip
    decoder = BatchDecoder(EVERYTHING, Schemas(), Formats(EventFormat.JSON, Schema.parse(READER)))
    batch = decoder.decode(events)
    assert batch.columns["card.country"].tolist() == ["DE", "FR", "??"] * 100
    assert batch.columns["amount"].tolist() == [1.0, 2.0, 3.0] * 100
    check(list(events), EVERYTHING, Schemas(), Schema.parse(READER))


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (b'{"a":{"b":1}}', 1.0),
        (b'{"a.b":2,"a":{"b":1}}', 2.0),  # a key at the top goes before
        (b'{"a":{"b":null}}', "NullField"),
        (b'{"a":null}', "NullField"),
        (b'{"a":{}}', "MissingField"),
        (b"{}", "MissingField"),
        (b'{"a":5}', "WrongType"),
        (b'{"a":"{"}', "WrongType"),
        (b'{"a":[{"b":1}]}', "WrongType"),
        (b'{"a":{"b":true}}', "WrongType"),
        (b'{"a":{"b":1,"b":2}}', "WrongType"),
        (b'{"a":{"x":1,"b":1,"x":2}}', "WrongType"),
        (b'{"a":{"b":1},"a":{"b":1}}', "InvalidJson"),
        (b'{"a":{"c":{"c":1,"c":2},"b":1}}', 1.0),  # not on the way
    ],
)
@pytest.mark.parametrize("beside", [0, 200])
def test_the_edges_of_paths_in_json(event: bytes, outcome: object, beside: int) -> None:
    batch = check([event] * (1 + beside) + [b'{"a":{"b":7}}'] * beside, [FieldSpec("a.b", FLOAT)], Schemas())
    if isinstance(outcome, str):
        assert [one.error for one in batch.poison] == [outcome] * (1 + beside)
    else:
        assert batch.columns["a.b"].tolist() == [outcome] * (1 + beside) + [7.0] * beside


def test_booleans_inside_objects_are_booleans_and_nothing_else() -> None:
    events = [b'{"a":{"b":%b}}' % text for text in (b"true", b"false", b"1", b"0", b"null", b'"true"')] * 100
    batch = check(list(events), [FieldSpec("a.b", FLAG)], Schemas())
    assert batch.columns["a.b"].tolist() == [True, False] * 100


def test_nulls_that_count_leave_events_in_the_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the values null, and no event is read alone."""
    monkeypatch.setattr("modelcast.consumer.decode.batch.decode_each", None)
    events = [b'{"id":"%d","a":{"b":%b}, "c": %b}' % (row, [b"null", b"1"][row % 2], [b'"x"', b"null"][row // 500])
              for row in range(1000)]  # fmt: skip
    batch = check(list(events), [FieldSpec("a.b", FLOAT, null="-1"), FieldSpec("c", TEXT, null="")], Schemas())
    assert batch.columns["a.b"].tolist() == [-1.0, 1.0] * 500
    assert batch.columns["c"].tolist() == ["x"] * 500 + [""] * 500


def test_arrays_inside_records_feed_whole_rows() -> None:
    inner = {
        "type": "record",
        "name": "In",
        "fields": [of_type("string", "id"), of_type({"type": "array", "items": "int"}, "v")],
    }
    rows: list[dict[str, Any]] = [{"a": {"id": "x", "v": [1, 2, 3]}}, {"a": None}, {"a": {"id": "y", "v": [1]}}]
    found, poison = decoded([FieldSpec("a.v", DType.FLOAT32, (3,))], event_of(of_type(["null", inner])), rows)
    assert found == [[[1.0, 2.0, 3.0]]]
    assert poison == ["NullField", "WrongLength"]


def test_a_record_that_contains_itself_is_followed_as_far_as_a_path_goes() -> None:
    node = {"type": "record", "name": "Event", "fields": [of_type("long", "v"), of_type(["null", "Event"], "next")]}
    row = {"v": 1, "next": {"v": 2, "next": {"v": 3, "next": None}}}
    specs = [FieldSpec("v", LONG), FieldSpec("next.v", LONG), FieldSpec("next.next.v", LONG)]
    assert decoded(specs, node, [row])[0] == [[1], [2], [3]]
    assert decoded([FieldSpec("next.next.next.v", LONG)], node, [row])[1] == ["NullField"]


def test_runs_of_numbers_go_on_through_records() -> None:
    inner = {"type": "record", "name": "In", "fields": [of_type("double", f"v{place}") for place in range(600)]}
    schema = Schema.parse(event_of(of_type("float", "x"), of_type(inner), of_type("float", "y")))
    value = schema.frame + struct.pack("<f600df", 1, *range(600), 2)
    specs = [FieldSpec("x", FLOAT), FieldSpec("a.v0", FLOAT), FieldSpec("a.v599", FLOAT), FieldSpec("y", FLOAT)]
    batch = check([value, value[:-1]], specs, Schemas(schema))
    assert [column.tolist() for column in batch.columns.values()] == [[1.0], [0.0], [599.0], [2.0]]


@pytest.mark.parametrize(
    ("kind", "default"),
    [("int", "x"), ("int", 2**31), ("string", 5), ("double", True), (["null", "int"], "x"),
     ({"type": "enum", "name": "E", "symbols": ["A"]}, "B"), ({"type": "fixed", "name": "F", "size": 2}, "abc")],
)  # fmt: skip
def test_a_default_of_another_type_refuses_the_event_schema(kind: Any, default: Any) -> None:
    with pytest.raises(SourceError, match="[Dd]efault"):
        wanted_of([FieldSpec("a", FLOAT)], Schema.parse(event_of({**of_type(kind), "default": default})))
