"""A TCP proxy before a real broker that reads Kafka's frames: a request, or the answer to one, is held, lost or let go.

A client told to connect here stays here: the broker advertises the proxy's address on a listener of its own, and its
real one on the other, so that only who is meant to meets faults.

    with proxied_broker(folder) as (broker, proxy):
        hold = proxy.hold(Api.END_TXN, Way.ANSWER)
        ... a client commits ...
        hold.await_caught()
        hold.lose()

Frames are as in Kafka's protocol guide: a length of 4 bytes; in requests then API key (int16), API version (int16),
correlation id (int32), client id; in answers the correlation id.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from pathlib import Path

from modelcast.dev.broker import LocalBroker
from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.errors import BrokerError

DEADLINE_S = 60.0
_LENGTH = struct.Struct(">i")
_REQUEST_HEAD = struct.Struct(">hhi")


class Api(IntEnum):
    """API keys of Kafka's protocol, as far as tests name them."""

    PRODUCE = 0
    FETCH = 1
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    JOIN_GROUP = 11
    HEARTBEAT = 12
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    CONSUMER_GROUP_HEARTBEAT = 68


class Way(Enum):
    """Which of the two directions."""

    REQUEST = auto()
    ANSWER = auto()


class _Fate(Enum):
    GO = auto()
    LOST = auto()
    CUT = auto()


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that came by, whatever became of it."""

    at_s: float
    api: int


@dataclass(eq=False)
class Hold:
    """Holds the next frame of its kind (or all of them), and with it what follows on the same connection.

    Attributes:
        api: Whose requests or answers.
        way: Requests, or answers.
        every: All frames from now on, not just the next.
    """

    api: Api
    way: Way
    every: bool = False
    caught: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _fate: _Fate | None = None

    def await_caught(self, timeout_s: float = DEADLINE_S) -> None:
        """Waits until a frame is held."""
        with self._changed:
            what = f"{self.way.name} of {self.api.name}"
            assert self._changed.wait_for(lambda: self.caught, timeout_s), f"no {what} came by in {timeout_s:g} s"

    def let_go(self) -> None:
        """What is held goes on its way: it was late."""
        self._decide(_Fate.GO)

    def lose(self) -> None:
        """What is held is gone; the connection stays, and what follows passes."""
        self._decide(_Fate.LOST)

    def cut(self) -> None:
        """What is held is gone, and its connection with it."""
        self._decide(_Fate.CUT)

    def takes(self, api: int, way: Way) -> bool:
        """Whether this frame is one to hold; counted if so."""
        with self._changed:
            over = self._fate is not None or (self.caught and not self.every)
            if over or api != self.api or way is not self.way:
                return False
            self.caught += 1
            self._changed.notify_all()
            return True

    def await_fate(self) -> _Fate:
        """Waits until the test has decided."""
        with self._changed:
            self._changed.wait_for(lambda: self._fate is not None)
            assert self._fate is not None
            return self._fate

    def _decide(self, fate: _Fate) -> None:
        with self._changed:
            self._fate = fate
            self._changed.notify_all()


class FaultProxy:
    """Passes connections on to a port of this machine; `close` ends all of them.

    Args:
        remembered: How many requests `requests` can tell of, the latest; by default all there were.
    """

    def __init__(self, *, remembered: int | None = None) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._upstream_port = 0
        self._lock = threading.Lock()
        self._holds: list[Hold] = []
        self._sockets: set[socket.socket] = set()
        self._passed: deque[Passed] = deque(maxlen=remembered)

    @property
    def address(self) -> str:
        """What clients connect to."""
        return f"{LOOPBACK}:{self.port}"

    def start(self, upstream_port: int) -> None:
        """Takes connections from now on."""
        self._upstream_port = upstream_port
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    def hold(self, api: Api, way: Way, *, every: bool = False) -> Hold:
        """Holds the next such frame that comes by."""
        made = Hold(api, way, every)
        with self._lock:
            self._holds.append(made)
        return made

    def requests(self, *apis: Api) -> list[Api]:
        """The requests of these kinds that came by, in order."""
        with self._lock:
            return [Api(passed.api) for passed in self._passed if passed.api in apis]

    def cut_all(self) -> None:
        """Ends every connection; clients may connect anew."""
        with self._lock:
            sockets = list(self._sockets)
        for connection in sockets:
            _shut(connection)

    def forget(self) -> None:
        """Holds nothing any more; what is held is gone, and its connection with it."""
        with self._lock:
            holds, self._holds = self._holds, []
        for hold in holds:
            hold.cut()

    def close(self) -> None:
        """Ends it; what is held is gone."""
        _shut(self._listener)
        self.forget()
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection((LOOPBACK, self._upstream_port))
            except OSError:  # the broker is down: so is the connection
                _shut(client)
                continue
            asked: dict[int, int] = {}
            with self._lock:
                self._sockets.update((client, server))
            for side in (
                threading.Thread(target=self._requests, args=(client, server, asked), daemon=True),
                threading.Thread(target=self._answers, args=(client, server, asked), daemon=True),
            ):
                side.start()

    def _requests(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        with self._whole(client, server):
            for frame in _frames(client):
                api, _, correlation = _REQUEST_HEAD.unpack_from(frame, _LENGTH.size)
                asked[correlation] = api
                with self._lock:
                    self._passed.append(Passed(time.monotonic(), api))
                if self._may_pass(api, Way.REQUEST):
                    server.sendall(frame)

    def _answers(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        with self._whole(client, server):
            for frame in _frames(server):
                (correlation,) = _LENGTH.unpack_from(frame, _LENGTH.size)
                if self._may_pass(asked.pop(correlation), Way.ANSWER):
                    client.sendall(frame)

    def _may_pass(self, api: int, way: Way) -> bool:
        """Waits while the frame is held; raises ConnectionError where its connection is cut."""
        with self._lock:
            hold = next((hold for hold in self._holds if hold.takes(api, way)), None)
        if hold is None:
            return True
        fate = hold.await_fate()
        if fate is _Fate.CUT:
            raise ConnectionError("cut")
        return fate is _Fate.GO

    @contextmanager
    def _whole(self, client: socket.socket, server: socket.socket) -> Iterator[None]:
        """Both halves of a connection end together."""
        try:
            with suppress(OSError):
                yield
        finally:
            for end in (client, server):
                _shut(end)
                with self._lock:
                    self._sockets.discard(end)


@contextmanager
def proxied_broker(folder: Path) -> Iterator[tuple[LocalBroker, FaultProxy]]:
    """A running broker, `bootstrap_servers` without and the proxy's `address` with faults.

    The broker keeps its ports when it is killed and started again; the proxy stays.
    """
    proxy = FaultProxy()
    direct, behind, controller = free_ports(3)
    broker = LocalBroker(
        folder,
        port=direct,
        die_with_parent=True,
        server_properties={
            "listeners": f"PLAINTEXT://{LOOPBACK}:{direct},FAULTY://{LOOPBACK}:{behind},"
            f"CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{direct},FAULTY://{proxy.address}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,FAULTY:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
            # Tests of slow members need sessions shorter than a default broker allows.
            "group.min.session.timeout.ms": "1000",
        },
    )
    try:
        broker.start()
        proxy.start(behind)
        yield broker, proxy
    finally:
        proxy.close()
        with suppress(BrokerError):  # it was slow to stop and was killed: nobody wants its data any more
            broker.stop()


def _frames(source: socket.socket) -> Iterator[bytes]:
    """Whole frames with their length, until the connection ends."""
    with source.makefile("rb") as stream:
        while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            body = stream.read(length)
            if len(body) < length:
                return
            yield head + body


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is down already
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
