"""Settings: the caller before the environment before the file before the dev broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcast.config import Connection, parse_property, read_properties
from modelcast.errors import BrokerError, ConfigError


@pytest.fixture
def properties(tmp_path: Path) -> Path:
    path = tmp_path / "client.properties"
    path.write_text("# ours\n\nbootstrap.servers=file:1\n! old\nsecurity.protocol = SSL\nsasl.password=a=b\n")
    return path


def test_properties_files_hold_librdkafka_names(properties: Path) -> None:
    assert read_properties(properties) == {
        "bootstrap.servers": "file:1",
        "security.protocol": "SSL",
        "sasl.password": "a=b",
    }


def test_what_the_caller_says_wins(properties: Path) -> None:
    environment = {"MODELCAST_BOOTSTRAP_SERVERS": "env:1", "MODELCAST_PREFIX": "env"}
    resolve = Connection.resolve
    assert resolve(properties_file=properties, environment={}).bootstrap_servers == "file:1"
    assert resolve(properties_file=str(properties), environment=environment).bootstrap_servers == "env:1"
    by_property = resolve(properties={"bootstrap.servers": "x:1"}, environment=environment)
    assert by_property.bootstrap_servers == "x:1"
    assert resolve("flag:1", properties_file=properties, environment=environment).bootstrap_servers == "flag:1"
    assert resolve("flag:1", environment=environment).prefix == "env"
    assert resolve("flag:1", prefix="mine", environment=environment).topics.registry == "mine.registry"
    assert resolve("flag:1", environment={}).prefix == "modelcast"


def test_the_environment_can_name_the_file(properties: Path) -> None:
    connection = Connection.resolve(environment={"MODELCAST_PROPERTIES_FILE": str(properties)})
    assert connection.settings["security.protocol"] == "SSL"


def test_without_any_broker_it_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path))
    with pytest.raises(BrokerError, match="modelcast dev up"):
        Connection.resolve(environment={})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.properties"):
        Connection.resolve("a:1", properties_file=tmp_path / "nowhere.properties", environment={})


def test_a_bad_line_is_named_but_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("a=b\nhunter2\n")
    with pytest.raises(ConfigError, match="line 2") as error:
        read_properties(path)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["novalue", "=x", ""])
def test_a_property_is_key_equals_value(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_property(text)


def test_a_prefix_that_kafka_would_refuse_is_refused_here() -> None:
    with pytest.raises(ConfigError, match="prefix"):
        Connection.resolve("a:1", prefix="no spaces", environment={})


def test_settings_stay_out_of_what_is_printed() -> None:
    connection = Connection.resolve("a:1", properties={"sasl.password": "hunter2"}, environment={})
    assert "hunter2" not in repr(connection)
