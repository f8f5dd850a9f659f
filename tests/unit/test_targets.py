"""What a user says of models, topics and routes, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from modelcast.consumer.batches import EVENTS_MAX
from modelcast.consumer.lineup import WhenFailing
from modelcast.consumer.parts import together
from modelcast.consumer.routing import NOWHERE, Routing, parse_routes
from modelcast.consumer.targets import Predictions, Targets
from modelcast.errors import UsageError
from modelcast.names import ModelRef
from modelcast.records import DType
from modelcast.tensors import FieldSpec

FRAUD, CHURN = ModelRef("fraud"), ModelRef("churn")


class TestTopics:
    @pytest.mark.parametrize(
        ("models", "predictions", "topics"),
        [
            ("fraud", "T", ["T"]),
            (["fraud", "churn"], "T", ["T", "T"]),
            (["fraud", "churn"], "{model}-scores", ["fraud-scores", "churn-scores"]),
            (["fraud", "churn@3"], ["fraud=A", "churn@3=B"], ["A", "B"]),
            (["fraud", "churn@03"], {"fraud": "A", "churn@3": "B"}, ["A", "B"]),
            (["fraud", "churn"], ["churn=B", "{model}-x"], ["fraud-x", "B"]),
            (["fraud", "fraud@3"], ["fraud=A", "fraud@3=B"], ["A", "B"]),
        ],
    )
    def test_each_model_has_its_topic(
        self, models: str | list[str], predictions: Predictions, topics: list[str]
    ) -> None:
        assert [target.topic for target in Targets.of(models, predictions).each] == topics

    @pytest.mark.parametrize(
        ("models", "predictions", "words"),
        [
            ([], "T", "no model is named"),
            (["fraud", "fraud"], "{model}", "named twice: fraud, fraud"),
            (["fraud", "churn"], ["fraud=A"], "no topic for the predictions of churn"),
            (["fraud"], ["fraud=A", "chrun=B"], "a topic is named for chrun"),
            (["fraud"], ["fraud=A", "fraud=B"], "the predictions of fraud have two topics: A, B"),
            (["fraud"], ["A", "B"], "the predictions of all models have two topics: A, B"),
            (["fraud"], ["fraud="], "'fraud=' names no topic"),
            (["fraud"], "", "'' names no topic"),
            (["fraud", "fraud@3"], "{model}-scores", "fraud and fraud@3 would both write to 'fraud-scores'"),
            ("no model", "T", "'no model' is not a model name"),
        ],
    )
    def test_what_does_not_fit_is_a_usage_error(
        self, models: str | list[str], predictions: Predictions, words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            Targets.of(models, predictions)

    def test_dead_letters_are_beside_the_predictions_or_where_these_have_several_topics_the_events(self) -> None:
        assert Targets.of("fraud", "T").dead_letters("E") == "T.dead-letters"
        assert Targets.of(["fraud", "churn"], "T").dead_letters("E") == "T.dead-letters"
        assert Targets.of(["fraud", "churn"], "{model}").dead_letters("E") == "E.dead-letters"

    def test_a_batch_has_as_many_predictions_whatever_the_number_of_models(self) -> None:
        names = ["a", "b", "c", "d"]
        assert Targets.of(names, "T").batch_events == EVENTS_MAX / 4
        assert Targets.of(names, "T", route="field").batch_events == Targets.of("a", "T").batch_events == EVENTS_MAX

    def test_the_group_follows_from_models_and_topics_in_whatever_order(self) -> None:
        assert Targets.of("fraud@3", "T").group("p") == "p.fraud.T"
        one, other = Targets.of(["fraud", "churn"], "{model}-s"), Targets.of(["churn", "fraud"], "{model}-s")
        assert one.group("p") == other.group("p") == "p.churn+fraud.churn-s+fraud-s"

    def test_the_group_of_very_many_models_has_a_short_name_of_its_own(self) -> None:
        names = [f"model-{number}" for number in range(50)]
        group = Targets.of(names, "T").group("p")
        assert group.startswith("p.50-models.")
        assert len(group) < 40
        assert group == Targets.of(names[::-1], "T").group("p") != Targets.of(names[1:], "T").group("p")


class TestRoutes:
    def test_models_that_routes_lead_to_need_not_be_named_again(self) -> None:
        targets = Targets.of([], "T", route="country", routes={"DE": "fraud", "AT": "fraud", "US": "churn@2"})
        assert targets.refs == (FRAUD, ModelRef("churn", 2))
        assert targets.routing is not None
        assert targets.routing.places(np.array(["US", "AT", "FR"], object)).tolist() == [1, 0, NOWHERE]

    def test_routes_of_integers_go_by_an_integer(self) -> None:
        routing = Routing.of("tenant", {"17": FRAUD, "-3": CHURN}, [FRAUD, CHURN])
        assert routing.spec == FieldSpec("tenant", DType.INT64)
        assert routing.places(np.array([-3, 17, 4])).tolist() == [1, 0, NOWHERE]
        assert routing.no_route(4) == "field 'tenant' is 4, and no model is named for that"

    @pytest.mark.parametrize("values", [("17", "x"), ("17", "007"), ("-0", "1")])
    def test_routes_that_are_not_all_integers_go_by_text(self, values: tuple[str, str]) -> None:
        routing = Routing.of("tenant", dict(zip(values, (FRAUD, CHURN), strict=True)), [FRAUD, CHURN])
        assert routing.spec.dtype is DType.STRING
        assert routing.places(np.array(values, object)).tolist() == [0, 1]

    def test_without_routes_values_are_the_models_names(self) -> None:
        routing = Targets.of(["fraud", "churn@2"], "T", route="kind").routing
        assert routing is not None
        assert routing.places(np.array(["churn", "fraud", "churn@2"], object)).tolist() == [1, 0, NOWHERE]

    @pytest.mark.parametrize(
        ("models", "route", "routes", "words"),
        [
            (["fraud"], None, {"DE": "fraud"}, "routes need a field"),
            (["fraud"], "", {"DE": "fraud"}, "needs the name of an event field"),
            (["fraud", "churn"], "c", {"DE": "fraud"}, "no route leads to churn"),
        ],
    )
    def test_routes_that_lead_nowhere_are_usage_errors(
        self, models: list[str], route: str | None, routes: Mapping[str, str], words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            Targets.of(models, "T", route=route, routes=routes)

    def test_a_route_to_another_scorer_s_model_is_refused(self) -> None:
        with pytest.raises(UsageError, match="DE=churn leads to no model of this scorer"):
            Routing.of("country", {"DE": CHURN, "US": FRAUD}, [FRAUD])

    def test_they_are_written_as_pairs(self) -> None:
        assert parse_routes(["DE=a, US=b", "*=c"]) == {"DE": "a", "US": "b", "*": "c"}
        assert parse_routes([]) == {}

    @pytest.mark.parametrize("text", ["DE", "=a", "DE=", "DE=a,", "DE=a,DE=b"])
    def test_what_is_no_pair_is_a_usage_error(self, text: str) -> None:
        with pytest.raises(UsageError):
            parse_routes([text])


class TestFieldsTogether:
    AMOUNT, WHOLE = FieldSpec("amount", DType.FLOAT32), FieldSpec("amount", DType.INT64)
    AGE = FieldSpec("age", DType.FLOAT32)

    def test_fields_that_agree_are_decoded_once(self) -> None:
        wanted, places = together([[self.AMOUNT, self.AGE], [self.AMOUNT], [self.AGE]])
        assert wanted == [(self.AMOUNT, self.AGE)]
        assert places == (0, 0, 0)

    def test_a_field_wanted_as_two_things_takes_two_decoders(self) -> None:
        wanted, places = together([[self.AMOUNT], [self.WHOLE, self.AGE], [self.WHOLE], [self.AGE]])
        assert wanted == [(self.AMOUNT, self.AGE), (self.WHOLE, self.AGE)]
        assert places == (0, 1, 1, 0)


def test_a_lone_model_that_fails_keeps_its_events_and_one_of_several_stops_no_other() -> None:
    assert WhenFailing.of(None, 1) is WhenFailing.WAIT
    assert WhenFailing.of(None, 2) is WhenFailing.DEAD_LETTER
    assert WhenFailing.of("wait", 2) is WhenFailing.WAIT
    with pytest.raises(UsageError, match="'panic'"):
        WhenFailing.of("panic", 2)
