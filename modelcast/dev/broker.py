"""`LocalBroker`: one real Kafka broker on this machine, as an object.

- It listens on the loopback interface only, on a port drawn free, so that two never meet: a client that finds another
  broker on the expected port is silently given that one's data.
- Its data stays in its folder across `stop`, `kill` and `restart`, and so does its port.
- It is ready when it has logged that every listener accepts requests, and the port answers.
- What a killed one left behind is shut out before it is started again (`fencing`).
- After the first clean stop on Java 25 or later an ahead-of-time cache of loaded classes is kept beside the jars, and
  later starts, of any broker, take half the time.

    with LocalBroker(tmp_path) as broker:
        Producer({"bootstrap.servers": broker.bootstrap_servers})
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from modelcast.errors import BrokerError, UsageError

from . import aot
from .broker_log import read_from, relevant_lines, size_bytes
from .fencing import fence
from .folders import kafka_cache_dir
from .jars import Progress, kafka_jars
from .java import Java, find_java
from .ports import LOOPBACK, answers, free_ports, is_free
from .process import POLL_INTERVAL_S, Process, spawn
from .settings import STARTED_LINE, log4j_properties, lone_controller_properties, server_properties

DEFAULT_HEAP_MB = 512  # 160 MB resident in ordinary use; less makes fetches of large models collect garbage
START_TIMEOUT_S = 180.0  # 1.5 s on an idle machine, over a minute on one shared by many; one that fails is told at once
STOP_TIMEOUT_S = 60.0  # a controlled shutdown takes 0.5 s; writing the ahead-of-time cache adds seconds, once
KILL_TIMEOUT_S = 60.0  # the kernel needs milliseconds, unless it writes a core or waits for a disk
FORMAT_TIMEOUT_S = 180.0
PORT_TRIES = 3  # between drawing a port and listening on it, somebody else may take it

_ADDRESS_IN_USE = "Address already in use"
_CLEAN_END_FILE = ".kafka_cleanshutdown"  # among a broker's data, from its end in order to its next start
_JVM_CRASHED = "A fatal error has been detected by the Java Runtime Environment"
# They would change the flags the broker is started with.
_JAVA_VARIABLES = frozenset(
    {"CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "JDK_AOT_VM_OPTIONS", "_JAVA_OPTIONS"}
)


class LocalBroker:
    """A one-node Kafka cluster (broker and controller in one process) in a folder.

    Args:
        data_dir: Where data, configuration and log are kept; made when it does not exist.
        port: Of the clients' listener; by default one that is free, drawn at the first start.
        heap_mb: The largest Java heap, in MiB.
        die_with_parent: Kill the broker when this process ends, however that ends (Linux only).
        full_compiler: Let Java optimise fully: slower to start, faster under load. For benchmarks.
        server_properties: Broker settings that win over modelcast's own.
        cache_dir: Where Kafka's jars are kept; by default in the user's cache folder.
        cluster_id: Of the cluster its data is made for (`new_cluster_id`); by default one of its own. Brokers of one
            cluster share it; `server_properties` then name them and their voters.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        heap_mb: int = DEFAULT_HEAP_MB,
        die_with_parent: bool = False,
        full_compiler: bool = False,
        server_properties: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        cluster_id: str | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._heap_mb = heap_mb
        self._die_with_parent = die_with_parent
        self._full_compiler = full_compiler
        self._overrides = dict(server_properties or {})
        self._cache_dir = cache_dir or kafka_cache_dir()
        self._cluster_id = cluster_id
        self._process: Process | None = None

    @property
    def port(self) -> int:
        """The port of the clients' listener.

        Raises:
            UsageError: The broker was never started and no port was given.
        """
        if self._port is None:
            raise UsageError("The broker has no port before its first start", hint="Call start() first")
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to; the same across restarts."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def process(self) -> Process:
        """The broker's process.

        Raises:
            UsageError: It was not started, or was stopped.
        """
        if self._process is None:
            raise UsageError(f"The broker in {self.data_dir} was not started", hint="Call start() first")
        return self._process

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        return self.process.pid

    @property
    def log_path(self) -> Path:
        """The broker's log, and what its JVM printed."""
        return self.data_dir / "broker.log"

    @property
    def running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process is not None and self._process.alive()

    def start(self, *, on_progress: Progress | None = None, on_spawn: Callable[[Process], None] | None = None) -> None:
        """Starts it and waits until it is ready; does nothing when it runs.

        Args:
            on_progress: Told about the download of Kafka, at the first start on a machine.
            on_spawn: Told the process as soon as there is one, before it is ready.

        Raises:
            BrokerError: It did not become ready (the message ends with its log's last lines), or can't be fetched.
            MissingExtraError: There is no Java, or nothing to fetch Kafka with.
        """
        if self.running:
            return
        java = find_java()
        jars = kafka_jars(cache_dir=self._cache_dir, on_progress=on_progress)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        fixed_port = self._port
        for tries_left in reversed(range(PORT_TRIES)):
            drawn_port, controller_port = free_ports(2)
            self._port = drawn_port if fixed_port is None else fixed_port
            try:
                self._start_once(java, jars, controller_port, on_spawn)
                return
            except _PortTakenError as error:
                if tries_left == 0 or (fixed_port is not None and not is_free(fixed_port)):
                    raise BrokerError(error.message, hint=error.hint) from error

    def stop(self) -> None:
        """Ends it in order (SIGTERM) and waits; does nothing when it does not run.

        Raises:
            BrokerError: It did not end within `STOP_TIMEOUT_S`, and was killed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if not end(process):
            raise BrokerError(
                f"The broker (pid {process.pid}) did not stop within {STOP_TIMEOUT_S:.0f} s and was killed",
                hint=f"Its log is {self.log_path}",
            )
        aot.keep_recording(self._cache_dir, self.data_dir)

    def kill(self) -> None:
        """Ends it at once (SIGKILL), as a power cut would, and waits until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send(signal.SIGKILL)
            process.wait(KILL_TIMEOUT_S)

    def restart(self) -> None:
        """Stops it if it runs, and starts it on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes it (SIGSTOP): connections stay open and nothing answers."""
        self.process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused broker go on (SIGCONT)."""
        self.process.send(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start_once(
        self,
        java: Java,
        jars: tuple[Path, ...],
        controller_port: int,
        on_spawn: Callable[[Process], None] | None,
    ) -> None:
        config = self._write_configuration(controller_port)
        classes = self._class_cache(java, jars)
        use_classes = [f"-XX:AOTCache={classes}"] if classes is not None and classes.exists() else []
        record_classes = aot.recording_flags(classes, self.data_dir) if classes is not None and not use_classes else []
        command = [str(java.path), *use_classes, *self._jvm_flags(), "-cp", os.pathsep.join(map(str, jars))]
        if not self._has_data():
            self._format(command, config)
        elif self._was_killed() and self._cluster_id is None:
            self._fence(command, controller_port)
        seen_bytes = size_bytes(self.log_path)
        process = spawn(
            [*command, *record_classes, "kafka.Kafka", str(config)],
            output=self.log_path,
            env=_environment(),
            die_with_parent=self._die_with_parent,
        )
        self._process = process
        try:
            if on_spawn is not None:
                on_spawn(process)
            self._await_ready(process, seen_bytes)
        except BaseException:
            self.kill()
            if classes is not None and _JVM_CRASHED in read_from(self.log_path, seen_bytes):
                classes.unlink(missing_ok=True)  # the one part of the class path no digest vouches for
            raise

    def _await_ready(self, process: Process, seen_bytes: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            alive = process.alive()  # asked before the log is read: what a process wrote before its end is then read
            said = read_from(self.log_path, seen_bytes)
            if STARTED_LINE in said and answers(self.port):
                return
            if not alive:
                raise self._failure(said, "ended before it was ready")
            if time.monotonic() >= deadline:
                raise self._failure(said, f"was not ready within {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_INTERVAL_S)

    def _failure(self, said: str, what: str) -> BrokerError:
        kind = _PortTakenError if _ADDRESS_IN_USE in said else BrokerError
        return kind(
            f"The broker {what}; the end of its log:\n{relevant_lines(said)}",
            hint=f"The whole log is {self.log_path}",
        )

    def _class_cache(self, java: Java, jars: tuple[Path, ...]) -> Path | None:
        # A cache made for the quick compiler is of no use to the full one, and benchmarks are not about starting.
        if java.major < aot.MIN_JAVA_MAJOR or self._full_compiler:
            return None
        return aot.cache_file(self._cache_dir, java, jars)

    def _write_configuration(self, controller_port: int) -> Path:
        config = self.data_dir / "server.properties"
        config.write_text(server_properties(self._kafka_dir, self.port, controller_port, self._overrides))
        (self.data_dir / "log4j2.properties").write_text(log4j_properties())
        return config

    @property
    def _kafka_dir(self) -> Path:
        return self.data_dir / "kafka"

    def _has_data(self) -> bool:
        return (self._kafka_dir / "meta.properties").exists()

    def _was_killed(self) -> bool:
        return not (self._kafka_dir / _CLEAN_END_FILE).exists()

    def _fence(self, command: list[str], controller_port: int) -> None:
        config = self.data_dir / "controller.properties"
        config.write_text(
            lone_controller_properties(self._kafka_dir, self.port, controller_port, self._overrides), encoding="utf-8"
        )
        fence(
            [*command, "kafka.Kafka", str(config)],
            kafka_dir=self._kafka_dir,
            log_path=self.log_path,
            env=_environment(),
            die_with_parent=self._die_with_parent,
        )

    def _jvm_flags(self) -> list[str]:
        flags = ["-Xms64m", f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
        if not self._full_compiler:
            flags.append("-XX:TieredStopAtLevel=1")
        return [
            *flags,
            "-Djava.awt.headless=true",
            # The class cache warns of what it had to leave out; in a failed start's message that would hide the reason.
            "-Xlog:disable",
            "-Xlog:all=error:stdout",
            f"-Dlog4j2.configurationFile={self.data_dir / 'log4j2.properties'}",
            f"-Dmodelcast.log={self.log_path}",
        ]

    def _format(self, command: list[str], config: Path) -> None:
        tool = [
            *command,
            "kafka.tools.StorageTool",
            "format",
            "--cluster-id",
            self._cluster_id or new_cluster_id(),
            "--config",
            str(config),
        ]
        try:
            done = subprocess.run(
                tool, env=_environment(), capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BrokerError(
                f"Kafka did not prepare {self._kafka_dir} within {FORMAT_TIMEOUT_S:.0f} s",
                hint="It takes a second on a machine with nothing else to do: try again",
            ) from None
        if done.returncode != 0:
            raise BrokerError(
                f"Kafka could not prepare {self._kafka_dir}:\n{relevant_lines(done.stdout + done.stderr)}",
                hint=f"Its configuration is {config}",
            )


def new_cluster_id() -> str:
    """Returns a random id as Kafka writes them: 16 bytes, URL-safe base64 without padding."""
    first, *rest = uuid.uuid4().bytes
    # With its top bit clear the first byte can't become a "-", which the storage tool would read as an option.
    return base64.urlsafe_b64encode(bytes([first & 0x7F, *rest])).decode("ascii").rstrip("=")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _JAVA_VARIABLES}


class _PortTakenError(BrokerError):
    """Somebody else listens on the port that was drawn."""


def end(process: Process) -> bool:
    """Ends a broker's process in order, or by force when that takes too long.

    Returns:
        Whether it ended in order.
    """
    process.send(signal.SIGTERM)
    process.send(signal.SIGCONT)  # a paused process would keep the request pending
    if process.wait(STOP_TIMEOUT_S):
        return True
    process.send(signal.SIGKILL)
    process.wait(KILL_TIMEOUT_S)
    return False
