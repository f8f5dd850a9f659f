"""Several models on one stream: decoded once, each its own predictions and faults, one transaction for all."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast.consumer import lineup as lineup_module
from modelcast.consumer.batches import BatchSizer
from modelcast.consumer.carrying import Carrier, header_names
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.lineup import WhenFailing
from modelcast.consumer.routing import ANY, Routing
from modelcast.errors import UsageError
from modelcast.names import ModelRef
from modelcast.records import DType, InputBinding, OutputSpec, Signature
from modelcast.testing.group import CommitFault

from .control_rig import wait_until
from .scorer_rig import SCORES, SOON_S, TO, FunctionServable, Rig, RunningScorer

OTHER = "other-scores"


def takes(*fields: str, dtype: DType = DType.FLOAT32) -> Signature:
    shape = (None,) if len(fields) == 1 else (None, len(fields))
    return Signature((InputBinding("x", dtype, shape, fields),), (OutputSpec.named("score", DType.FLOAT32, (None,)),))


def churn(version: int = 1, **options: Any) -> FunctionServable:
    """Takes `age`, which is 1 in all events of the rig."""
    return FunctionServable(version, model="churn", **{"signature": takes("age"), **options})


def score_all(rig: Rig, live: FunctionServable, *others: tuple[str, FunctionServable], **options: Any) -> RunningScorer:
    with RunningScorer(rig, live=live, others=others, end=rig.end(), **options) as scorer:
        scorer.join()
    if scorer.error is not None:
        raise scorer.error
    return scorer


def scores(rig: Rig, topic: str) -> list[tuple[str, int, float]]:
    """(model, source offset, score), in the topic's order."""
    return [(datum["model"], datum["source"]["offset"], datum["score"]) for datum in rig.data(topic)]


def letters(rig: Rig) -> list[Mapping[str, str]]:
    return [
        {"offset": "", **{name.rpartition(".")[2]: (value or b"").decode() for name, value in record.headers}}
        for record in rig.records(TO.dead_letters)
    ]


def test_each_model_scores_every_event_to_its_own_topic() -> None:
    rig = Rig(partitions=2, topics=[OTHER])
    rig.send(range(60), partition=0)
    rig.send(range(40), partition=1)
    scorer = score_all(rig, FunctionServable(1), (OTHER, churn(bias=0.5)))
    events = [(0, n) for n in range(60)] + [(1, n) for n in range(40)]
    assert [(datum["source"]["partition"], datum["source"]["offset"]) for datum in rig.data(SCORES)] == events
    assert [(datum["source"]["partition"], datum["source"]["offset"]) for datum in rig.data(OTHER)] == events
    assert {datum["score"] for datum in rig.data(OTHER)} == {1.5}
    assert rig.committed() == {0: 60, 1: 40}
    assert (scorer.committer.totals.events, scorer.committer.totals.predictions) == (100, 200)
    assert scorer.committer.totals.counts == ((100, 0), (100, 0))


def test_predictions_of_several_models_on_one_topic_stand_in_the_order_of_their_events() -> None:
    rig = Rig()
    rig.send(range(5))
    score_all(rig, FunctionServable(1), (SCORES, churn()))
    assert scores(rig, SCORES) == [(model, n, score) for n in range(5) for model, score in (("fraud", n), ("churn", 1))]


def test_a_batch_is_decoded_once_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    collect = BatchDecoder.collect

    def counted(decoder: BatchDecoder, values: Any, headers: Any = None) -> Any:
        decoded.append(len(values))
        return collect(decoder, values, headers)

    monkeypatch.setattr(BatchDecoder, "collect", counted)
    rig = Rig(topics=[OTHER, "third"])
    rig.send(range(30))
    score_all(
        rig,
        FunctionServable(1),
        (OTHER, churn()),
        ("third", FunctionServable(1, model="third", signature=takes("amount"))),
    )
    assert sum(decoded) == 30


def test_a_field_that_two_models_want_as_different_things_is_each_one_s_own_affair() -> None:
    rig = Rig(topics=[OTHER])
    rig.send([1, 2.5, 3])
    whole = FunctionServable(1, model="whole", signature=takes("amount", dtype=DType.INT64))
    score_all(rig, FunctionServable(1), (OTHER, whole))
    assert [offset for _, offset, _ in scores(rig, SCORES)] == [0, 1, 2]
    assert [offset for _, offset, _ in scores(rig, OTHER)] == [0, 2]
    (letter,) = letters(rig)
    assert (letter["model"], letter["exception"]) == ("whole", "WrongType")


def test_an_event_that_lacks_what_one_model_takes_is_that_model_s_dead_letter_and_no_other_s() -> None:
    rig = Rig(topics=[OTHER])
    rig.send([1])
    rig.send_bytes(b'{"age": 7}')
    rig.send([3])
    scorer = score_all(rig, FunctionServable(1), (OTHER, churn()))
    assert [offset for _, offset, _ in scores(rig, SCORES)] == [0, 2]
    assert [(offset, score) for _, offset, score in scores(rig, OTHER)] == [(0, 1), (1, 7), (2, 1)]
    (letter,) = letters(rig)
    assert (letter["model"], letter["version"], letter["exception"]) == ("fraud", "1", "MissingField")
    assert scorer.committer.totals.counts == ((2, 1), (3, 0))


def test_an_event_that_no_model_can_take_is_one_dead_letter_that_names_them_all() -> None:
    rig = Rig(topics=[OTHER])
    rig.send([1])
    rig.send_bytes(b"garbage")
    rig.send_bytes(b'{"amount": 1, "age": "x"}')
    score_all(rig, FunctionServable(3), (OTHER, churn(12)))
    first, second = letters(rig)
    assert (first["model"], first["version"], first["exception"]) == ("fraud,churn", "3,12", "InvalidJson")
    assert (second["model"], second["exception"]) == ("fraud,churn", "WrongType")
    assert second["message"].startswith("field 'age' is a string")


def test_different_faults_of_one_event_are_told_together() -> None:
    rig = Rig(topics=[OTHER])
    rig.send_bytes(b'{"amount": "x"}')
    score_all(rig, FunctionServable(1, signature=takes("amount")), (OTHER, churn()))
    (letter,) = letters(rig)
    first, second = letter["message"].split("; ")
    assert first.startswith("fraud: field 'amount' is a string")
    assert second.startswith("churn: field 'age' ")
    assert letter["exception"] == "WrongType"


def test_rows_that_one_model_can_not_take_cost_the_other_nothing() -> None:
    rig = Rig(topics=[OTHER])
    rig.send([1, -1, 3])
    score_all(rig, FunctionServable(1, fails=lambda amounts: bool((amounts < 0).any())), (OTHER, churn()))
    assert [offset for _, offset, _ in scores(rig, SCORES)] == [0, 2]
    assert [offset for _, offset, _ in scores(rig, OTHER)] == [0, 1, 2]


def test_all_events_wait_while_one_model_has_no_version() -> None:
    rig = Rig(topics=[OTHER])
    rig.send(range(10))
    with RunningScorer(rig, live=FunctionServable(1), others=[(OTHER, None)], end=rig.end()) as scorer:
        scorer.wait_waiting("no version is live")
        assert rig.records(SCORES) == []
        scorer.slots[1].swap(churn())  # type: ignore[arg-type]
        scorer.join()
    assert len(scores(rig, SCORES)) == len(scores(rig, OTHER)) == 10


def test_a_swap_of_one_model_leaves_the_other_s_version_in_place() -> None:
    rig = Rig(topics=[OTHER])
    rig.send(range(100))
    swapped = threading.Event()
    first = churn(1, before=lambda: len(first.batches) < 3 or swapped.wait(SOON_S))
    with RunningScorer(
        rig, live=FunctionServable(1), others=[(OTHER, first)], end=rig.end(), sizer=BatchSizer(events_max=10)
    ) as scorer:
        wait_until(lambda: len(first.batches) >= 3, "some batches of the first version")
        scorer.slots[1].swap(churn(2))  # type: ignore[arg-type]
        swapped.set()
        scorer.join()
    assert {datum["version"] for datum in rig.data(SCORES)} == {1}
    versions = [datum["version"] for datum in rig.data(OTHER)]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}


class TestAModelThatFailsOnEverything:
    def test_makes_way_for_another_version_before_any_event_is_given_up(self) -> None:
        rig, broken = Rig(topics=[OTHER]), threading.Event()
        rig.send([1, 2, 3])
        failing = churn(1, fails=lambda _: broken.is_set())
        with RunningScorer(
            rig, live=FunctionServable(1), others=[(OTHER, failing)], when_failing=WhenFailing.DEAD_LETTER
        ) as scorer:
            wait_until(lambda: len(rig.data(OTHER)) == 3, "the first predictions")
            broken.set()
            rig.send([4, 5])
            scorer.wait_waiting("churn@1 fails on every event, and another version may take its place")
            assert len(rig.data(SCORES)) == 3
            scorer.slots[1].swap(churn(2))  # type: ignore[arg-type]
            wait_until(lambda: len(rig.data(OTHER)) == 5, "the other version's predictions")
        assert [datum["version"] for datum in rig.data(OTHER)] == [1, 1, 1, 2, 2]
        assert [offset for _, offset, _ in scores(rig, SCORES)] == [0, 1, 2, 3, 4]
        assert rig.records(TO.dead_letters) == []
        assert scorer.heard.failed == ["churn@1: the model failed on its input"]

    def test_stops_no_other_once_nothing_took_its_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lineup_module, "SUCCESSOR_PATIENCE_S", 0.2)
        rig, broken = Rig(topics=[OTHER]), threading.Event()
        rig.send([1, 2, 3])
        failing = churn(1, fails=lambda _: broken.is_set())
        with RunningScorer(
            rig, live=FunctionServable(1), others=[(OTHER, failing)], when_failing=WhenFailing.DEAD_LETTER
        ) as scorer:
            wait_until(lambda: len(rig.data(OTHER)) == 3, "the first predictions")
            broken.set()
            rig.send([4, 5])
            wait_until(lambda: len(rig.data(SCORES)) == 5, "the other model's predictions")
            broken.clear()
            rig.send([6])
            wait_until(lambda: len(rig.data(SCORES)) == 6, "the last event's prediction")
        assert [offset for _, offset, _ in scores(rig, OTHER)] == [0, 1, 2, 5], "tried again, it scores again"
        assert [(letter["model"], letter["exception"]) for letter in letters(rig)] == [("churn", "ModelFailed")] * 2
        assert len(scorer.heard.failed) == 1, "the fault is told once, not for every batch"
        assert scorer.committer.totals.counts == ((6, 0), (4, 2))

    def test_holds_all_events_back_if_the_user_wants_that(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lineup_module, "SUCCESSOR_PATIENCE_S", 0.0)
        rig, broken = Rig(topics=[OTHER]), threading.Event()
        rig.send([1])
        failing = churn(1, fails=lambda _: broken.is_set())
        with RunningScorer(rig, live=FunctionServable(1), others=[(OTHER, failing)]) as scorer:
            wait_until(lambda: len(rig.data(OTHER)) == 1, "the first prediction")
            broken.set()
            rig.send([2])
            scorer.wait_waiting("churn@1 fails on every event, and nothing can take its place")
        assert len(rig.data(SCORES)) == 1
        assert rig.records(TO.dead_letters) == []


class TestRoutes:
    BY_COUNTRY = Routing.of(
        "country", {"DE": ModelRef("fraud"), "US": ModelRef("churn")}, [ModelRef("fraud"), ModelRef("churn")]
    )

    @staticmethod
    def send(rig: Rig, *events: Mapping[str, Any]) -> None:
        for event in events:
            rig.send_bytes(json.dumps(event).encode())

    def test_an_event_is_scored_by_the_model_its_field_names_and_needs_what_that_one_takes(self) -> None:
        rig = Rig(topics=[OTHER])
        self.send(
            rig,
            {"country": "DE", "amount": 1, "age": 2},
            {"country": "US", "age": 3},
            {"country": "US", "age": 4, "amount": "none of its business"},
            {"country": "DE", "age": 5},
        )
        scorer = score_all(rig, FunctionServable(1), (OTHER, churn()), routing=self.BY_COUNTRY)
        assert scores(rig, SCORES) == [("fraud", 0, 1)]
        assert scores(rig, OTHER) == [("churn", 1, 3), ("churn", 2, 4)]
        (letter,) = letters(rig)
        assert (letter["model"], letter["exception"]) == ("fraud", "MissingField")
        assert scorer.committer.totals.counts == ((1, 1), (2, 0))

    def test_routed_predictions_on_one_topic_keep_the_order_of_their_events(self) -> None:
        rig = Rig()
        self.send(rig, *({"country": "DE" if n % 3 else "US", "amount": n, "age": n} for n in range(30)))
        score_all(rig, FunctionServable(1), (SCORES, churn()), routing=self.BY_COUNTRY)
        assert [offset for _, offset, _ in scores(rig, SCORES)] == list(range(30))

    def test_an_event_no_model_is_named_for_is_a_dead_letter_of_no_model(self) -> None:
        rig = Rig(topics=[OTHER])
        self.send(rig, {"country": "FR", "amount": 1, "age": 1}, {"amount": 1, "age": 1}, {"country": None})
        rig.send_bytes(b"garbage")
        score_all(rig, FunctionServable(1), (OTHER, churn()), routing=self.BY_COUNTRY)
        found = letters(rig)
        assert [letter["exception"] for letter in found] == ["NoRoute", "NoRoute", "NoRoute", "InvalidJson"]
        assert found[0]["message"] == "field 'country' is 'FR', and no model is named for that"
        assert found[1]["message"].startswith("no model can be chosen: field 'country' ")
        assert not any("model" in letter for letter in found)

    def test_a_model_may_be_named_for_every_other_event(self) -> None:
        rig = Rig(topics=[OTHER])
        refs = [ModelRef("fraud"), ModelRef("churn")]
        routing = Routing.of("country", {"DE": refs[0], ANY: refs[1]}, refs)
        self.send(
            rig, {"country": "FR", "age": 1}, {"age": 2}, {"country": 7, "age": 3}, {"country": "DE", "amount": 1}
        )
        score_all(rig, FunctionServable(1), (OTHER, churn()), routing=routing)
        assert [offset for _, offset, _ in scores(rig, OTHER)] == [0, 1, 2]
        assert [letter["exception"] for letter in letters(rig)] == ["MissingField"]

    def test_a_route_may_be_an_integer_or_within_a_record(self) -> None:
        rig = Rig(topics=[OTHER])
        refs = [ModelRef("fraud"), ModelRef("churn")]
        routing = Routing.of("at.shop", {"1": refs[0], "2": refs[1]}, refs)
        self.send(rig, *({"at": {"shop": shop}, "amount": 1, "age": 1} for shop in (2, 1, 3)), {"at": {"shop": "1"}})
        score_all(rig, FunctionServable(1), (OTHER, churn()), routing=routing)
        assert (scores(rig, SCORES), scores(rig, OTHER)) == ([("fraud", 1, 1)], [("churn", 0, 1)])
        assert [letter["exception"] for letter in letters(rig)] == ["NoRoute", "NoRoute"]


class TestHeaders:
    TRACE = ("traceparent", b"00-4bf92f35-00f067aa-01")

    def test_those_named_go_along_and_no_others(self) -> None:
        rig = Rig()
        rig.send_bytes(b'{"amount": 1, "age": 1}', headers=[self.TRACE, ("secret", b"x"), ("tracestate", None)])
        rig.send_bytes(b'{"amount": 2, "age": 1}')
        rig.send_bytes(b"garbage", headers=[self.TRACE])
        score_all(rig, FunctionServable(1), carrier=Carrier(["traceparent", "tracestate"]))
        assert [record.headers for record in rig.records(SCORES)] == [(self.TRACE, ("tracestate", None)), ()]
        assert [offset for _, offset, _ in scores(rig, SCORES)] == [0, 1]
        assert self.TRACE in rig.records(TO.dead_letters)[0].headers

    def test_their_names_are_a_list_with_commas_or_refused(self) -> None:
        assert header_names("traceparent, tracestate,") == ["traceparent", "tracestate"]
        with pytest.raises(UsageError, match="names no header"):
            header_names(" ,")
        with pytest.raises(UsageError, match="one text"):
            Carrier("traceparent")

    def test_none_go_along_unasked(self) -> None:
        rig = Rig()
        rig.send_bytes(b'{"amount": 1, "age": 1}', headers=[self.TRACE])
        score_all(rig, FunctionServable(1))
        assert [record.headers for record in rig.records(SCORES)] == [()]

    def test_each_prediction_of_several_models_has_its_event_s(self) -> None:
        rig = Rig(topics=[OTHER])
        for number in range(4):
            rig.send_bytes(b'{"amount": 1, "age": 1}', headers=[("n", b"%d" % number)] * (number % 2 + 1))
        score_all(rig, FunctionServable(1), (OTHER, churn()), (OTHER, churn(2)), carrier=Carrier(["n"]))
        wanted = [(("n", b"%d" % number),) * (number % 2 + 1) for number in range(4)]
        assert [record.headers for record in rig.records(SCORES)] == wanted
        assert [record.headers for record in rig.records(OTHER)] == [headers for headers in wanted for _ in range(2)]


@given(
    events=st.lists(st.sampled_from(["both", "no amount", "no age", "garbage", "poison"]), max_size=30),
    faults=st.lists(st.sampled_from(list(CommitFault)), max_size=4),
    events_max=st.integers(1, 8),
)
@settings(max_examples=25, deadline=None)
def test_whatever_becomes_of_commits_each_model_has_one_outcome_for_each_event(
    events: list[str], faults: list[CommitFault], events_max: int
) -> None:
    values = {
        "both": b'{"amount": 1, "age": 1}',
        "no amount": b'{"age": 1}',
        "no age": b'{"amount": 1}',
        "garbage": b"garbage",
        "poison": b'{"amount": -1, "age": 1}',
    }
    rig = Rig(topics=[OTHER])
    rig.send([1])
    for event in events:
        rig.send_bytes(values[event])
    rig.log.next_commits.extend(fault for fault in faults if fault is not CommitFault.FENCED)
    fraud = FunctionServable(1, signature=takes("amount"), fails=lambda amounts: bool((amounts < 0).any()))
    score_all(rig, fraud, (OTHER, churn()), sizer=BatchSizer(events_max=events_max))
    outcomes = Counter(("fraud", offset) for _, offset, _ in scores(rig, SCORES))
    outcomes += Counter(("churn", offset) for _, offset, _ in scores(rig, OTHER))
    outcomes += Counter(
        (model, int(letter["offset"])) for letter in letters(rig) for model in letter["model"].split(",")
    )
    assert outcomes == {(model, offset): 1 for model in ("fraud", "churn") for offset in range(len(events) + 1)}
    assert len(letters(rig)) == sum(event != "both" for event in events)
