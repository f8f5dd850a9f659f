"""The class cache: recorded by the first broker that ends in order, used by all later ones."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from modelcast.dev import aot
from modelcast.dev.broker import LocalBroker
from modelcast.dev.folders import kafka_cache_dir
from modelcast.dev.jars import kafka_jars, listed_jars
from modelcast.dev.java import find_java


@pytest.fixture
def empty_class_cache(tmp_path: Path) -> Path:
    """A cache folder of the test's own, with the jars and nothing else."""
    kafka_jars()
    cache = tmp_path / "cache"
    for jar in listed_jars():
        (cache / jar.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kafka_cache_dir() / jar.path, cache / jar.path)
    return cache


def command_line(broker: LocalBroker) -> str:
    return Path(f"/proc/{broker.pid}/cmdline").read_text()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads command lines from /proc")
def test_it_is_recorded_once_and_then_used(empty_class_cache: Path, tmp_path: Path) -> None:
    if find_java().major < aot.MIN_JAVA_MAJOR:
        pytest.skip(f"needs Java {aot.MIN_JAVA_MAJOR}")
    cache_file = aot.cache_file(empty_class_cache, find_java(), kafka_jars(cache_dir=empty_class_cache))
    broker = LocalBroker(tmp_path / "data", die_with_parent=True, cache_dir=empty_class_cache)

    broker.start()
    assert "-XX:AOTCacheOutput=" in command_line(broker)
    broker.kill()
    assert not cache_file.exists()

    broker.start()
    assert "-XX:AOTCacheOutput=" in command_line(broker)
    broker.stop()
    assert cache_file.exists()
    assert list(broker.data_dir.glob("*.aot*")) == []

    began = time.monotonic()
    broker.start()
    print(f"ready in {time.monotonic() - began:.2f} s")
    assert f"-XX:AOTCache={cache_file}" in command_line(broker)
    assert "-XX:AOTCacheOutput=" not in command_line(broker)
    broker.stop()


def test_another_java_or_another_jar_has_a_cache_of_its_own(empty_class_cache: Path) -> None:
    jars = kafka_jars(cache_dir=empty_class_cache)
    first = aot.cache_file(empty_class_cache, find_java(), jars)
    assert aot.cache_file(empty_class_cache, find_java(), jars) == first
    os.utime(jars[0], (0, 0))
    assert aot.cache_file(empty_class_cache, find_java(), jars) != first
