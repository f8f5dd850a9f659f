"""Reading the status topic: backwards first, then as it comes, through brokers that are away and topics made anew."""

from __future__ import annotations

import pytest

from modelcast import codec
from modelcast.errors import AuthorizationError, RepositoryNotFoundError
from modelcast.fleet import watch as watching
from modelcast.fleet.fleet import Presence
from modelcast.fleet.watch import PROBE_S, StatusWatch
from modelcast.records import InstanceStatus
from modelcast.topics import Topics

from .control_rig import TOPICS, UnsteadyLog
from .fleet_records import NOW_MS, model, status

HOUR_MS = 3_600_000


class Bench:
    def __init__(self) -> None:
        self.log = UnsteadyLog()
        self.now_s = 0.0
        self.pauses: list[float] = []

    def watch(self, *, forget_after_ms: int | None = HOUR_MS) -> StatusWatch:
        return StatusWatch(
            self.log,  # type: ignore[arg-type]
            TOPICS,
            forget_after_ms=forget_after_ms,
            clock=lambda: self.now_s,
            now_ms=self.now_ms,
            pause=self.pauses.append,
        )

    def now_ms(self) -> int:
        return NOW_MS + int(self.now_s * 1000)

    def say(self, said: InstanceStatus, *, at_ms: int | None = None) -> None:
        self.log.writer().send(
            TOPICS.status,
            key=said.instance.encode(),
            value=codec.encode_status(said),
            timestamp_ms=self.now_ms() if at_ms is None else at_ms,
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def names(watch: StatusWatch) -> dict[str, Presence]:
    return {instance.name: instance.presence for instance in watch.fleet.instances}


def test_a_first_look_sees_who_is_there(bench: Bench) -> None:
    bench.say(status("a", model(version=1)))
    bench.say(status("a", model(version=2)))
    bench.say(status("b", ended=True))
    fleet = bench.watch().look()
    assert [(i.name, i.presence) for i in fleet.instances] == [("a", Presence.RUNNING), ("b", Presence.STOPPED)]
    assert fleet.instances[0].status.models[0].live_version == 2


def test_an_empty_topic_is_an_empty_fleet(bench: Bench) -> None:
    assert bench.watch().look().instances == ()


def test_what_comes_later_is_followed(bench: Bench) -> None:
    watch = bench.watch()
    watch.look()
    bench.say(status("a"))
    watch.poll(0.0)
    assert names(watch) == {"a": Presence.RUNNING}


def test_only_as_much_is_read_as_is_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_STRETCH", 10)
    for hours in range(200, 0, -1):  # one an hour: two hundred instances, of which the last is an hour old
        bench.say(status(f"i{hours}"), at_ms=NOW_MS - hours * HOUR_MS)
    watch = bench.watch(forget_after_ms=5 * HOUR_MS)
    watch.look()
    assert set(names(watch)) == {"i1", "i2", "i3", "i4", "i5"}
    assert len(watch._roster._values) == 20  # the first stretch, and one that was all older
    everything = bench.watch(forget_after_ms=None)
    everything.look()
    assert len(names(everything)) == 200


def test_a_quiet_one_is_found_behind_the_heartbeats_of_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_STRETCH", 10)
    bench.say(status("quiet", ended=True), at_ms=NOW_MS - HOUR_MS // 2)
    for _ in range(300):
        bench.say(status("busy"))
    watch = bench.watch()
    watch.look()
    assert names(watch) == {"busy": Presence.RUNNING, "quiet": Presence.STOPPED}


def test_an_instance_that_says_nothing_any_more_is_lost(bench: Bench) -> None:
    bench.say(status("a"))
    watch = bench.watch()
    watch.look()
    bench.now_s = 30.0
    watch.poll(0.0)
    assert names(watch) == {"a": Presence.LOST}
    bench.say(status("a"))
    watch.poll(0.0)
    assert names(watch) == {"a": Presence.RUNNING}


def test_a_clock_that_is_ahead_makes_nobody_immortal(bench: Bench) -> None:
    bench.say(status("a"), at_ms=NOW_MS + HOUR_MS)
    watch = bench.watch()
    watch.look()
    bench.now_s = 30.0
    watch.poll(0.0)
    assert names(watch) == {"a": Presence.LOST}


def test_a_clock_that_is_behind_is_no_matter_to_who_watches(bench: Bench) -> None:
    watch = bench.watch()
    watch.look()
    bench.say(status("a"), at_ms=NOW_MS - HOUR_MS)
    watch.poll(0.0)
    assert names(watch) == {"a": Presence.RUNNING}


def test_while_kafka_is_away_the_fleet_stays_as_it_was(bench: Bench) -> None:
    bench.say(status("a"))
    watch = bench.watch()
    watch.look()
    bench.log.down = True
    bench.now_s = PROBE_S
    watch.poll(0.25)
    assert (watch.away_ms, bench.pauses) == (NOW_MS, [0.25])  # when it last answered
    bench.now_s += 100.0
    watch.poll(0.25)
    assert names(watch) == {"a": Presence.RUNNING}
    assert watch.fleet.at_ms == watch.away_ms == NOW_MS
    bench.log.down = False
    watch.poll(0.0)
    assert watch.away_ms is None
    assert names(watch) == {"a": Presence.RUNNING}  # its heartbeats are on their way
    bench.now_s += 30.0
    watch.poll(0.0)
    assert names(watch) == {"a": Presence.LOST}


def test_a_topic_made_anew_is_read_anew(bench: Bench) -> None:
    for _ in range(3):
        bench.say(status("old"))
    watch = bench.watch()
    watch.look()
    bench.log.exchange()
    bench.say(status("new"))
    bench.now_s = PROBE_S
    for _ in range(2):
        watch.poll(0.0)
    assert names(watch) == {"new": Presence.RUNNING}


def test_without_a_repository_it_says_how_to_make_one(bench: Bench) -> None:
    watch = StatusWatch(bench.log, Topics("other"))  # type: ignore[arg-type]
    with pytest.raises(RepositoryNotFoundError) as caught:
        watch.look()
    assert caught.value.hint == "Make one with: modelcast init --prefix other"


def test_a_refusal_by_kafka_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = bench.watch()
    watch.look()

    def refuse(*_: object, **__: object) -> None:
        raise AuthorizationError("not allowed")

    monkeypatch.setattr(bench.log, "end_offsets", refuse, raising=False)
    bench.now_s = PROBE_S
    with pytest.raises(AuthorizationError):
        watch.poll(0.0)
