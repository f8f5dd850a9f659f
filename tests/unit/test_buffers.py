"""What a stream's events may take in memory."""

from __future__ import annotations

import pytest

from modelcast.config import Connection
from modelcast.consumer.batches import BYTES_MAX
from modelcast.consumer.buffers import MIN_BYTES, Buffers
from modelcast.errors import ConfigError, UsageError
from modelcast.kafka.settings import batch_settings, group_settings
from modelcast.sizes import parse_size

DEFAULT_BYTES = 512 << 20


def test_the_default_is_what_throughput_needs() -> None:
    assert Buffers.of(None) == Buffers(BYTES_MAX, {})


def test_the_default_budget_shares_out_to_the_defaults_of_the_client() -> None:
    shared = Buffers.of(DEFAULT_BYTES)
    consumer = group_settings({}, group="g", instance=None, session_timeout_ms=6_000, committed=True)
    producer = batch_settings({})
    assert shared.batch_bytes == BYTES_MAX
    assert int(shared.properties["queued.max.messages.kbytes"]) == consumer["queued.max.messages.kbytes"]
    assert int(shared.properties["queue.buffering.max.kbytes"]) == producer["queue.buffering.max.kbytes"]


@pytest.mark.parametrize("budget", [MIN_BYTES, 64 << 20, 200_000_000])
def test_what_is_held_fits_the_budget(budget: int) -> None:
    buffers = Buffers.of(budget)
    held = 1024 * sum(
        int(buffers.properties[name]) for name in ("queued.max.messages.kbytes", "queue.buffering.max.kbytes")
    )
    assert held + 4 * buffers.batch_bytes <= budget
    assert buffers.batch_bytes >= 1_000_000  # one record of the usual limit


def test_less_than_a_stream_can_work_with_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a stream needs more memory than 1,000 bytes.*16MiB"):
        Buffers.of(1_000)


def test_the_users_own_properties_win() -> None:
    connection = Connection({"bootstrap.servers": "b:1", "queued.max.messages.kbytes": "77"})
    settings = connection.with_defaults(Buffers.of(MIN_BYTES).properties).settings
    assert settings["queued.max.messages.kbytes"] == "77"
    assert settings["queue.buffering.max.kbytes"] == str(MIN_BYTES // 2048)


def test_a_size_that_is_none_names_the_option() -> None:
    assert parse_size("1.5GiB", "--max-memory") == 3 << 29
    with pytest.raises(ConfigError, match=r"--max-memory='much' is not a size"):
        parse_size("much", "--max-memory")
