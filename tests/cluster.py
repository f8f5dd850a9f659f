"""Three real brokers as one KRaft cluster, each behind a proxy that can break what goes through it.

    with Cluster(folder) as cluster:
        Producer({"bootstrap.servers": cluster.faulty_servers})     # through the proxies
        cluster.brokers[1].kill()
        cluster.brokers[1].start()
        cluster.await_whole()

- Every node is broker and controller (combined mode); records and state are kept three times, and an acknowledgement
  takes two: one node may be away at any time.
- Nodes talk to each other, and clients at `bootstrap_servers`, without the proxies.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from modelcast.dev.broker import LocalBroker, new_cluster_id
from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.errors import BrokerError

from .fault_proxy import FaultProxy

NODES = 3
IN_SYNC_LEAST = 2
# Of each node: three of them take half a gigabyte.
HEAP_MB = 256
# A node that was away catches up within seconds; on a busy machine its start alone may take minutes.
WHOLE_TIMEOUT_S = 300.0
# A machine that does much else may not have a node ready within a minute.
START_TRIES = 5
# How long a look at the cluster may take before it is asked again.
_METADATA_TIMEOUT_S = 10.0

_REPLICATED = {
    "default.replication.factor": str(NODES),
    "min.insync.replicas": str(IN_SYNC_LEAST),
    "offsets.topic.replication.factor": str(NODES),
    "transaction.state.log.replication.factor": str(NODES),
    "transaction.state.log.min.isr": str(IN_SYNC_LEAST),
    # On a machine that is busy elsewhere a node that lives may not answer for seconds: with shorter times the cluster
    # would be electing all the time.
    "broker.session.timeout.ms": "9000",
    "broker.heartbeat.interval.ms": "1000",
    "replica.lag.time.max.ms": "10000",
    "controller.quorum.election.timeout.ms": "3000",
    "controller.quorum.fetch.timeout.ms": "6000",
    "controller.quorum.request.timeout.ms": "6000",
}


class Cluster:
    """A cluster in a folder.

    Attributes:
        brokers: Its nodes; stop, kill or pause one at a time, and `await_whole` before the next.
        proxies: The one before each node.
    """

    def __init__(self, folder: Path) -> None:
        ports = free_ports(3 * NODES)
        direct, behind, controllers = ports[:NODES], ports[NODES : 2 * NODES], ports[2 * NODES :]
        voters = ",".join(f"{node}@{LOOPBACK}:{port}" for node, port in enumerate(controllers, 1))
        cluster_id = new_cluster_id()
        self._behind = behind
        self.proxies = tuple(FaultProxy(remembered=0) for _ in range(NODES))
        self.brokers = tuple(
            LocalBroker(
                folder / f"node-{index + 1}",
                port=direct[index],
                heap_mb=HEAP_MB,
                die_with_parent=True,
                cluster_id=cluster_id,
                server_properties={
                    **_REPLICATED,
                    "node.id": str(index + 1),
                    "controller.quorum.voters": voters,
                    "listeners": f"PLAINTEXT://{LOOPBACK}:{direct[index]},FAULTY://{LOOPBACK}:{behind[index]},"
                    f"CONTROLLER://{LOOPBACK}:{controllers[index]}",
                    "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{direct[index]},"
                    f"FAULTY://{self.proxies[index].address}",
                    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,FAULTY:PLAINTEXT,CONTROLLER:PLAINTEXT",
                    "inter.broker.listener.name": "PLAINTEXT",
                },
            )
            for index in range(NODES)
        )

    @property
    def bootstrap_servers(self) -> str:
        """All nodes, without the proxies."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    @property
    def faulty_servers(self) -> str:
        """All nodes, through the proxies."""
        return ",".join(proxy.address for proxy in self.proxies)

    def start(self) -> None:
        """Starts all nodes at once: none is ready before there is a quorum. Raises BrokerError."""
        with ThreadPoolExecutor(NODES) as starters:
            for started in [starters.submit(self.start_node, index) for index in range(NODES)]:
                started.result()
        for proxy, port in zip(self.proxies, self._behind, strict=True):
            proxy.start(port)
        self.await_whole()

    def start_node(self, index: int) -> None:
        """Starts one that is away; more than once where it is not ready in time. Raises BrokerError."""
        for tries_left in reversed(range(START_TRIES)):
            try:
                self.brokers[index].start()
            except BrokerError:
                if not tries_left:
                    raise
            else:
                return

    def await_whole(self, timeout_s: float = WHOLE_TIMEOUT_S) -> None:
        """Waits until every node is there and has all of its replicas in sync."""
        deadline = time.monotonic() + timeout_s
        while lacking := self._lacking():
            assert time.monotonic() < deadline, f"the cluster is not whole after {timeout_s:g} s: {lacking}"
            time.sleep(0.2)

    def close(self) -> None:
        """Ends all of it, whatever state it is in."""
        for proxy in self.proxies:
            proxy.close()
        with ThreadPoolExecutor(NODES) as enders:
            list(enders.map(_end, self.brokers))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lacking(self) -> str:
        """What keeps the cluster from being whole; empty if nothing does."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            seen = admin.list_topics(timeout=_METADATA_TIMEOUT_S)
        except KafkaException as error:
            return f"no answer: {error}"
        if len(seen.brokers) < NODES:
            return f"of {NODES} nodes {len(seen.brokers)} are there"
        behind = [
            f"{topic.topic}-{partition.id}"
            for topic in seen.topics.values()
            for partition in topic.partitions.values()
            if len(partition.isrs) < len(partition.replicas) or partition.leader < 0
        ]
        return f"replicas are behind: {', '.join(behind[:5])}" if behind else ""


def _end(broker: LocalBroker) -> None:
    with suppress(BrokerError):  # nobody wants its data any more
        broker.kill()
