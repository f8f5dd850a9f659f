"""A Kafka broker in a container, with what `LocalBroker` offers tests: start, stop, kill, pause, and a fixed address.

- The image is configured as the official one is, by `KAFKA_*` variables; the settings are the local broker's.
- Its port is the same inside and outside, and fixed: a port drawn by the engine would be another one after each start,
  and a broker that talks to itself does so by the address it advertises.
- Data stay in the container across `stop` and `kill`; `remove` ends both.
- testcontainers' own Kafka class is for images of another make and refuses these; this one is on its base class.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

from docker.errors import APIError
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from modelcast.dev.broker import STOP_TIMEOUT_S, new_cluster_id
from modelcast.dev.broker_log import relevant_lines
from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.dev.settings import ONE_NODE, STARTED_LINE
from modelcast.errors import BrokerError, UsageError

DATA_FOLDER = "/var/lib/kafka/data"  # a volume of the official image
CONTROLLER_PORT = 9093  # inside the container, where nobody else listens
START_TIMEOUT_S = 180.0  # 3 s on an idle machine; a loaded one with two cores took 53
POLL_INTERVAL_S = 0.1  # each look reads the whole log over the engine's API
PORT_TRIES = 3  # between drawing a port and publishing it, somebody else may take it

# As the local broker's: 160 MB resident, and quick to start.
_JAVA = {
    "KAFKA_HEAP_OPTS": "-Xms64m -Xmx512m",
    "KAFKA_JVM_PERFORMANCE_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData",
    # Retention and the cleaner look every second or less; each look would be a line.
    "KAFKA_LOG4J_LOGGERS": "org.apache.kafka.storage.internals.log=WARN,kafka.log=WARN",
}


class ContainerBroker:
    """A one-node Kafka cluster in a container, reached on the loopback interface.

    Args:
        image: `apache/kafka`, or one that is configured as that is.
        server_properties: Broker settings that win over all others.
    """

    def __init__(self, image: str, *, server_properties: Mapping[str, str] | None = None) -> None:
        self._image = image
        self._overrides = dict(server_properties or {})
        self._container: DockerContainer | None = None
        self._port: int | None = None

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to; the same across restarts."""
        if self._port is None:
            raise UsageError("The broker has no port before its first start", hint="Call start() first")
        return f"{LOOPBACK}:{self._port}"

    @property
    def running(self) -> bool:
        """Whether its process is there; a paused one is."""
        return self._container is not None and self._status() in {"running", "paused"}

    def start(self) -> None:
        """Starts it and waits until it is ready; does nothing when it runs.

        Raises:
            BrokerError: It did not become ready; the message ends with its log's last lines.
        """
        if self.running:
            return
        seen_bytes = 0
        if self._container is None:
            self._create()
        else:
            container = self._running_container()
            seen_bytes = len(container.logs())
            container.start()
        self._await_ready(seen_bytes)

    def stop(self) -> None:
        """Ends it in order (SIGTERM) and waits; does nothing when it does not run."""
        if self.running:
            self._freeze(False)
            self._running_container().stop(timeout=int(STOP_TIMEOUT_S))

    def kill(self) -> None:
        """Ends it at once (SIGKILL), as a power cut would, and waits until it is gone."""
        if self.running:
            container = self._running_container()
            container.kill()
            container.wait()

    def restart(self) -> None:
        """Stops it if it runs, and starts it on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes it: connections stay open and nothing answers."""
        self._freeze(True)

    def resume(self) -> None:
        """Lets a paused broker go on."""
        self._freeze(False)

    def remove(self) -> None:
        """Ends it, whatever state it is in, and its data."""
        container, self._container = self._container, None
        if container is not None:
            container.stop()

    def copy_data(self, into: Path) -> Path:
        """Copies what the broker has on its disk; returns the folder that its topics lie in."""
        chunks, _ = self._running_container().get_archive(DATA_FOLDER)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            archive.extractall(into, filter="data")
        return into / Path(DATA_FOLDER).name

    def _create(self) -> None:
        for tries_left in reversed(range(PORT_TRIES)):
            (self._port,) = free_ports(1)
            container = DockerContainer(self._image, env=self._environment(self._port))
            container.ports = {f"{self._port}/tcp": (LOOPBACK, self._port)}
            try:
                container.start()
            except APIError as error:
                container.stop()
                if tries_left == 0 or "port is already allocated" not in str(error):
                    raise BrokerError(f"No container of {self._image} could be started: {error}") from error
            else:
                self._container = container
                return

    def _environment(self, port: int) -> dict[str, str]:
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{LOOPBACK}:{CONTROLLER_PORT}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://:{port},CONTROLLER://{LOOPBACK}:{CONTROLLER_PORT}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
            "log.dirs": DATA_FOLDER,
            **ONE_NODE,
            **self._overrides,
        }
        return {"CLUSTER_ID": new_cluster_id(), **_JAVA, **{variable(key): value for key, value in settings.items()}}

    def _await_ready(self, seen_bytes: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            alive = self.running  # asked before the log is read: what a process wrote before its end is then read
            said = self._running_container().logs()[seen_bytes:].decode("utf-8", "replace")
            if STARTED_LINE in said:
                return
            if not alive or time.monotonic() >= deadline:
                what = f"was not ready within {START_TIMEOUT_S:.0f} s" if alive else "ended before it was ready"
                raise BrokerError(f"The broker {what}; the end of its log:\n{relevant_lines(said)}")
            time.sleep(POLL_INTERVAL_S)

    def _freeze(self, wanted: bool) -> None:
        if (self._status() == "paused") != wanted:
            container = self._running_container()
            container.pause() if wanted else container.unpause()

    def _status(self) -> str:
        container = self._running_container()
        container.reload()
        return container.status

    def _running_container(self) -> Container:
        if self._container is None:
            raise UsageError("The broker was not started", hint="Call start() first")
        return self._container.get_wrapped_container()


def variable(setting: str) -> str:
    """Returns the environment variable that the image takes a broker setting from."""
    return "KAFKA_" + setting.replace("_", "__").replace("-", "___").replace(".", "_").upper()
