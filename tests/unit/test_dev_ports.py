"""Ports for brokers."""

from __future__ import annotations

import socket

from modelcast.dev.ports import FIRST_PORT, LAST_PORT, LOOPBACK, answers, free_ports, is_free


def test_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports)


def test_a_port_is_free_until_somebody_listens() -> None:
    (port,) = free_ports(1)
    assert is_free(port)
    assert not answers(port)
    with socket.create_server((LOOPBACK, port)):
        assert not is_free(port)
        assert answers(port)
