"""The configuration of the local broker, as text."""

from __future__ import annotations

import re
from pathlib import Path

from modelcast.dev.broker import new_cluster_id
from modelcast.dev.broker_log import relevant_lines
from modelcast.dev.settings import lone_controller_properties, server_properties


def parsed(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_it_listens_on_the_loopback_interface_only() -> None:
    settings = parsed(server_properties(Path("/data"), 29_092, 29_093, {}))
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:29092,CONTROLLER://127.0.0.1:29093"


def test_given_settings_win() -> None:
    settings = parsed(server_properties(Path("/data"), 1, 2, {"auto.create.topics.enable": "true", "x": "y"}))
    assert settings["auto.create.topics.enable"] == "true"
    assert settings["x"] == "y"


def test_the_controller_alone_listens_where_the_node_s_controller_did() -> None:
    overrides = {
        "listeners": "PLAINTEXT://127.0.0.1:1,FAULTY://127.0.0.1:3,CONTROLLER://127.0.0.1:4",
        "inter.broker.listener.name": "FAULTY",
        "max.request.partition.size.limit": "7",
    }
    settings = parsed(lone_controller_properties(Path("/data"), 1, 2, overrides))
    assert settings["listeners"] == "CONTROLLER://127.0.0.1:4"
    assert settings["process.roles"] == "controller"
    assert settings["max.request.partition.size.limit"] == "7"
    assert "advertised.listeners" not in settings
    assert "inter.broker.listener.name" not in settings


def test_values_are_escaped_as_java_reads_them() -> None:
    text = server_properties(Path("/data"), 1, 2, {"sasl.jaas.config": 'user="a\\b"\npassword'})
    assert 'sasl.jaas.config=user="a\\\\b"\\npassword\n' in text


def test_a_cluster_id_is_never_mistaken_for_an_option() -> None:
    ids = {new_cluster_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch(r"[A-Za-f][A-Za-z0-9_-]{21}", each) for each in ids)


def test_an_error_message_shows_the_errors_of_a_log_without_stack_frames() -> None:
    log = (
        "[t] INFO fine (a)\n[t] ERROR bind failed (b)\njava.net.BindException: in use\n\tat x.Y(Z.java:1)\n[t] INFO z\n"
    )
    assert relevant_lines(log) == "  [t] ERROR bind failed (b)\n  java.net.BindException: in use"


def test_a_log_without_errors_shows_its_end() -> None:
    assert relevant_lines("".join(f"line {n}\n" for n in range(100))).splitlines()[-1] == "  line 99"
