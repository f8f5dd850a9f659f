"""Free TCP ports on the loopback interface.

Ports are drawn from below the range the kernel hands to outgoing connections. A client that keeps reconnecting to a
broker that is down would otherwise, now and then, be given the broker's own port as its source port: it connects to
itself, and the broker can't come back.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
FIRST_PORT = 20_000  # above the ports well-known services take
LAST_PORT = 32_767  # Linux starts its outgoing connections at 32768, macOS at 49152
MAX_TRIES = 200  # a machine with most of 12,768 ports taken has other troubles


def free_ports(count: int) -> tuple[int, ...]:
    """Returns `count` different ports that nothing listens on.

    Raises:
        OSError: No free ports were found.
    """
    with ExitStack() as held:  # all are held until the last is found, so that none is drawn twice
        ports: list[int] = []
        for _ in range(MAX_TRIES):
            if len(ports) == count:
                return tuple(ports)
            candidate = random.randint(FIRST_PORT, LAST_PORT)  # noqa: S311 (no secret)
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                listener.bind((LOOPBACK, candidate))
                listener.listen()
            except OSError:
                continue
            ports.append(candidate)
    raise OSError(f"no free port between {FIRST_PORT} and {LAST_PORT} in {MAX_TRIES} tries")


def is_free(port: int) -> bool:
    """Returns whether a server could listen on `port` now; connections still closing on it don't count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError:
            return False
    return True


def answers(port: int, *, timeout_s: float = 1.0) -> bool:
    """Returns whether something accepts connections on `port`."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s):
            return True
    except OSError:
        return False
