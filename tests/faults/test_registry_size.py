"""A registry of many models in many versions: read in bounded time and memory, kept up with in milliseconds.

Smaller here than the ten thousand models of `python -m benchmarks.registry`, and by the same code: what grows faster
than the registry does shows in the figures per version.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.registry import Reading, fill, follow_apart, publish_apart, read_apart
from benchmarks.transfers import apart
from modelcast.kafka import KafkaLog
from tests.brokers import Broker
from tests.reliability.figures import figure

# 10,000 make the 100,000 versions that the figures per version stand for.
MODELS, VERSIONS = int(os.environ.get("MODELCAST_REGISTRY_MODELS", "1000")), 10
MORE = 50
# Each is some 0.1 ms and 2.5 KB on a quiet machine: the manifest's 1.3 KB as they came, its release, places in maps.
MOST_MS_PER_VERSION = 1.0
MOST_BYTES_PER_VERSION = 4_000
# What the client holds ahead, and the heap it came through.
CLIENT_BYTES = 40e6
# Milliseconds on a quiet machine; a copy of the registry for each release would take longer.
MOST_MORE_MS = 100.0
# An application of one model, its runtime included, has 150 MB beside the registry.
MOST_APPLICATION_MB = 300.0
# Starting, publishing or loading a small model is a matter of a second; what comes on top is the registry's.
SLACK_S = 20.0


@pytest.mark.timeout(300 + MODELS // 10)
def test_f40_a_start_takes_time_and_memory_in_proportion_and_one_more_release_takes_moments(
    broker: Broker, tmp_path: Path
) -> None:
    servers = broker.bootstrap_servers
    with KafkaLog({"bootstrap.servers": servers}) as log:
        fill(log, MODELS, VERSIONS)
    reading: Reading = apart(read_apart, servers, MORE)
    figure(
        f"{MODELS * VERSIONS:,} versions of {MODELS:,} models: {reading.catch_up_cpu_s:.2f} s of processor time, "
        f"{reading.image_mb:.0f} MB, one more release in {reading.more_ms:.1f} ms"
    )
    versions = MODELS * VERSIONS
    assert reading.catch_up_cpu_s * 1000 / versions <= MOST_MS_PER_VERSION
    assert reading.image_mb is not None
    assert reading.image_mb * 1e6 <= CLIENT_BYTES + versions * MOST_BYTES_PER_VERSION
    assert reading.more_ms <= MOST_MORE_MS
    read_s = versions * MOST_MS_PER_VERSION / 1000
    assert apart(publish_apart, servers, tmp_path) <= read_s + SLACK_S
    application = apart(follow_apart, servers, tmp_path)
    figure(f"an application is live after {application.live_s:.2f} s with {application.resident_mb:.0f} MB resident")
    assert application.live_s <= read_s + SLACK_S
    assert application.resident_mb <= MOST_APPLICATION_MB
