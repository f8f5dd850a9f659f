"""What all of a soak shares: a cluster, a repository, topics, folders, and how its processes are started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tests.cluster import NODES, Cluster

from .timeline import Timeline

ROOT = Path(__file__).resolve().parents[2]
MODEL = "fraud"
PREFIX = "soak"
EVENTS = "soak-events"
PARTITIONS = 4
# One command on a busy machine, a commit in doubt and a broker that comes back in it.
COMMAND_S = 240.0
_CREATED_S = 120.0


@dataclass(frozen=True)
class StreamPlace:
    """One group of scorers and its topics.

    Attributes:
        options: Of `modelcast score`, what makes the group one of its kind.
    """

    name: str
    options: tuple[str, ...]

    @property
    def predictions(self) -> str:
        return f"soak-scores-{self.name}"

    @property
    def dead_letters(self) -> str:
        return f"{self.predictions}.dead-letters"

    @property
    def group(self) -> str:
        return f"soak-{self.name}"


STREAMS = (StreamPlace("classic", ()), StreamPlace("kip848", ("-X", "group.protocol=consumer")))


@dataclass(frozen=True)
class Stage:
    """The place where it happens.

    Attributes:
        folder: Keeps every log.
        patience: What every deadline is multiplied by: a machine that does much else is no broken promise.
    """

    cluster: Cluster
    folder: Path
    timeline: Timeline
    patience: float = 1.0

    @property
    def servers(self) -> str:
        """For whoever is to meet no faults of the network."""
        return self.cluster.bootstrap_servers

    def environment(self, host: str = "host") -> dict[str, str]:
        """Of a process on a host of that name: what its cache and state are shared with."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MODELCAST_BOOTSTRAP_SERVERS": self.cluster.faulty_servers,
            "MODELCAST_PREFIX": PREFIX,
            "MODELCAST_STATE_DIR": str(self.folder / host / "state"),
            "MODELCAST_CACHE_DIR": str(self.folder / host / "cache"),
        }

    def set_up(self) -> None:
        """The repository and the topic of events."""
        admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        deadline = time.monotonic() + self.patience * _CREATED_S
        while True:
            try:
                admin.create_topics([NewTopic(EVENTS, PARTITIONS, NODES)])[EVENTS].result()
                break
            except KafkaException:  # the cluster is still finding itself
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        command = [sys.executable, "-m", "modelcast", "init", "-b", self.servers]
        with (self.folder / "init.log").open("w") as log:
            while subprocess.run(command, env=self.environment(), stdout=log, stderr=log, check=False).returncode:
                assert time.monotonic() < deadline, f"the repository can't be made; see {log.name}"
                time.sleep(1)
