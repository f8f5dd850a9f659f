"""The whole of it: set the stage, play the year, read what lies on the topics, compute the figures."""

from __future__ import annotations

from rich.markup import escape

from modelcast.config import Connection
from modelcast.demo.board import Board
from modelcast.demo.flights import Flights, columns_of, read_flights
from modelcast.demo.interrupts import Interrupts
from modelcast.demo.result import DemoResult, Kind, Played, Read, measure
from modelcast.demo.stage import Stage, set_up
from modelcast.demo.topics import frozen_scores, read_dead_letters, read_events, read_predictions
from modelcast.demo.training import FEATURES
from modelcast.demo.year import Script, Year
from modelcast.log import Log


def show(given: Connection | None, script: Script, board: Board, interrupts: Interrupts) -> DemoResult:
    """Runs the demonstration and leaves nothing behind.

    Args:
        given: The broker to play on; None starts one.
        script: How much of the year, and how fast.
        board: Told what happens.
        interrupts: What may end it early.

    Raises:
        MissingExtraError: A package is not installed.
        ModelcastError: The broker, the publisher or the scorer failed.
        KeyboardInterrupt: A signal came.
    """
    board.doing("reading the flights")
    with interrupts.at_once():
        flights = read_flights()
    board.doing("starting Kafka" if given is None else "making topics")

    def warn(text: str) -> None:
        board.note(f"[yellow]{escape(text)}[/yellow]")

    def on_download(done: int, total: int) -> None:
        board.doing(f"fetching Kafka, this once: {done} of {total} files")

    with set_up(given, interrupts, warn=warn, on_download=on_download) as stage, stage.connection.open_log() as log:
        board.note("Kafka is up" if given is None else f"topics begin with {stage.connection.prefix}")
        try:
            played = Year(flights, script, stage, board, interrupts).play(log)
            board.doing("reading the topics and counting")
            with interrupts.at_once():
                read = _read(log, stage, flights, played)
        except KeyboardInterrupt:
            board.note("interrupted: taking everything down")  # a group on a broker of others takes some seconds
            raise
        board.doing("taking everything down")
    return measure(flights, played, read)


def _read(log: Log, stage: Stage, flights: Flights, played: Played) -> Read:
    first = next(made.version for made in played.releases if made.kind is Kind.TRAINED)
    return Read(
        events=read_events(log, stage),
        predictions=read_predictions(log, stage),
        dead_letters=read_dead_letters(log, stage),
        frozen=frozen_scores(stage, first, columns_of(flights.table, FEATURES)),
    )
