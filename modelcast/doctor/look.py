"""Everything that is looked at, in the order in which one thing needs the other.

Nothing is written on the cluster, no group is joined, no transactional id is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from modelcast.access.acl import ResourceKind
from modelcast.config import Connection
from modelcast.errors import ModelcastError
from modelcast.fleet.fleet import Fleet, Presence
from modelcast.fleet.watch import StatusWatch
from modelcast.log import Log
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics

from .contact import Caller, Contact, Obstacle, call_all
from .look_host import look_at_host
from .sights import ClusterSight, Question, RepositorySight, Sight, VersionNeeds
from .tls import Validity, validities_in

# A registry that stands still for so long has somebody's transaction open, or is not to be read.
REGISTRY_TIMEOUT_S: Final = 10.0
# Instances speak every 5 s: so long at most is listened for what their clocks say.
LISTEN_S: Final = 6.0
_STEP_S: Final = 0.2
# Where nobody can be spoken to, the client library would only wait.
_HOPELESS: Final = frozenset({
    Obstacle.UNKNOWN_HOST, Obstacle.REFUSED, Obstacle.SILENT, Obstacle.SPEAKS_TLS, Obstacle.SPEAKS_PLAIN,
    Obstacle.WANTS_LOGIN,
})  # fmt: skip


class Looking:
    """One examination.

    Args:
        question: What it is about.
        connection: How to connect.
        policy: The trust policy given, if any.
        now_ms: Our clock, in epoch milliseconds.
        listen_s: How long to listen for running instances at most.
        say: Told what is being done, for people who wait.
    """

    def __init__(
        self,
        question: Question,
        connection: Connection,
        *,
        policy: Path | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        listen_s: float = LISTEN_S,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._question = question
        self._connection = connection
        self._policy = policy
        self._now_ms = now_ms
        self._listen_s = listen_s
        self._say = say

    def look(self) -> Sight:
        """Looks at everything; never raises for what is wrong with it."""
        question = self._question
        self._say("looking at this host")
        host = look_at_host(device=question.device, policy=self._policy)
        self._say(f"calling {question.servers}")
        ids = [acl.name for acl in question.needed if acl.kind is ResourceKind.TRANSACTIONAL_ID]
        caller = Caller(question.security, transactional_ids=sorted(set(ids)), now_ms=self._now_ms)
        servers = [server.strip() for server in question.servers.split(",") if server.strip()]
        contacts = tuple(call_all(caller, dict.fromkeys(servers)).values())
        cluster, login_error = self._cluster(contacts)
        repository: RepositorySight | None = None
        if cluster is not None:
            self._say(f"reading repository {question.prefix!r}")
            repository = self._repository()
        brokers = self._advertised(contacts, cluster)
        return Sight(self._now_ms(), contacts, brokers, login_error, self._certificates(), cluster, repository, host)

    def _advertised(self, contacts: Sequence[Contact], cluster: ClusterSight | None) -> tuple[Contact, ...]:
        """Calls where the cluster tells its clients to connect: a client uses what is configured only to ask that."""
        told = dict(cluster.brokers) if cluster is not None else {}
        for contact in contacts:
            told |= contact.brokers
        met = {contact.address: contact for contact in contacts}
        new = [address for address in dict.fromkeys(told.values()) if address not in met]
        met |= call_all(Caller(self._question.security, now_ms=self._now_ms), new)
        return tuple(met[address] for address in dict.fromkeys(told.values()))

    def _cluster(self, contacts: Sequence[Contact]) -> tuple[ClusterSight | None, ModelcastError | None]:
        """The cluster through the client library, or why it could not be looked at."""
        from modelcast.kafka.examination import Examination

        question, topics = self._question, Topics(self._question.prefix)
        names = {topics.registry, topics.schemas, topics.blobs, topics.status, *question.events, *question.outputs}
        try:
            examination = Examination(self._connection.settings)
            if contacts and all(contact.obstacle in _HOPELESS for contact in contacts):
                return None, None
            return examination.cluster(topics=names, groups=question.groups), None
        except ModelcastError as error:
            return None, error

    def _certificates(self) -> tuple[tuple[str, str, tuple[Validity, ...]], ...]:
        security = self._question.security
        named = (("ssl.certificate.location", security.certificate), ("ssl.ca.location", security.ca))
        return tuple((name, path, validities_in(Path(path))) for name, path in named if path)

    def _repository(self) -> RepositorySight:
        topics = Topics(self._question.prefix)
        try:
            with self._connection.open_log() as log:
                fleet_error: ModelcastError | None = None
                fleet: Fleet | None = None
                skews: Mapping[str, int] = {}
                with closing(RegistryReader(log, topics)) as reader:
                    image = reader.catch_up(REGISTRY_TIMEOUT_S)
                try:
                    fleet, skews = self._fleet(log, topics)
                except ModelcastError as error:
                    fleet_error = error
        except ModelcastError as error:
            return RepositorySight(error)
        assert image.repository is not None  # noqa: S101 (`catch_up` raises where there is none)
        return RepositorySight(
            None,
            image.repository.uuid,
            image.repository.format_version,
            tuple(sorted(name for name, entry in image.models.items() if entry.reserved_version)),
            tuple(_needs(image, self._question.models)),
            tuple(name for name in self._question.models if name not in image.models),
            fleet,
            fleet_error,
            skews,
        )

    def _fleet(self, log: Log, topics: Topics) -> tuple[Fleet, Mapping[str, int]]:
        """The fleet, and the clocks of who speaks while we listen. Raises ModelcastError."""
        with closing(StatusWatch(log, topics, now_ms=self._now_ms)) as watch:
            watch.look()
            fleet = watch.fleet
            running = {i.name: i.status.at_ms for i in fleet.instances if i.presence is Presence.RUNNING}
            if running and self._listen_s > 0:
                self._say(f"listening to {len(running)} running instance(s) for at most {self._listen_s:.0f} s")
            skews: dict[str, int] = {}
            deadline = time.monotonic() + self._listen_s
            while skews.keys() != running.keys() and time.monotonic() < deadline:
                watch.poll(_STEP_S)
                fleet = watch.fleet
                for instance in fleet.instances:
                    if running.get(instance.name, instance.status.at_ms) != instance.status.at_ms:
                        skews.setdefault(instance.name, instance.status.at_ms - instance.heard_ms)
        return fleet, skews


def _needs(image: RegistryImage, models: Sequence[str]) -> Iterator[VersionNeeds]:
    """What released versions ask for: of these models, or of all."""
    for name, entry in image.models.items():
        record = entry.versions.get(entry.champion.version) if entry.champion is not None else None
        if (models and name not in models) or not isinstance(record, VersionRecord):
            continue
        manifest = record.manifest
        yield VersionNeeds(name, manifest.version, manifest.ir_version, manifest.opsets, manifest.size_bytes)
