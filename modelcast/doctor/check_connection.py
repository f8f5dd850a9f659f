"""Whether brokers are there, let us in, are new enough, and have our time. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelcast.access.acl import Acl, Operation, ResourceKind, add_command
from modelcast.errors import AuthorizationError, ConfigError

from .contact import Contact, Obstacle
from .findings import Finding, Level, fault, ok, unknown, warning
from .mending import day, duration, tool
from .obstacles import explain
from .sights import Question, Sight
from .tls import Validity
from .wire import CLUSTER_AUTHORIZATION_FAILED, BrokerVersions

_DAY_MS: Final = 24 * 3600 * 1000
# Long enough to have a certificate renewed; one that lives shorter than a month is renewed in its last quarter.
EXPIRES_SOON_MS: Final = 7 * _DAY_MS
# What `status` forgives before it takes an instance for lost.
CLOCK_TOLERATED_MS: Final = 2_000
# Kafka's default `message.timestamp.after.max.ms`: records further ahead are refused.
CLOCK_REFUSED_MS: Final = 3_600_000

# API key -> version that is needed, the first Kafka that has it, and for what.
_NEEDED_APIS: Final = {
    28: (3, "2.5", "commit events and predictions exactly once (TxnOffsetCommit)"),
    19: (4, "2.4", "make topics with the cluster's own replication factor (CreateTopics)"),
    11: (5, "2.3", "keep a scorer's partitions over its restart (JoinGroup)"),
    2: (2, "0.11", "find the end of the registry (ListOffsets)"),
}
_CONSUMER_PROTOCOL_API: Final = 68
# Where what is wrong with a broker's certificate was told already.
_ABOUT_CERTIFICATE: Final = frozenset({
    Obstacle.EXPIRED, Obstacle.NOT_YET_VALID, Obstacle.UNTRUSTED, Obstacle.WRONG_HOST,
})  # fmt: skip


def check_connection(question: Question, sight: Sight) -> Iterator[Finding]:
    """Each configured server; what the cluster tells its clients; the login."""
    reached = [contact for contact in sight.contacts if contact.obstacle is None]
    own = tuple(_own_certificates(sight))
    for contact in sight.contacts:
        if contact.obstacle is None:
            yield ok("broker", f"{contact.address} answers")
        elif contact.obstacle is not Obstacle.OUR_CERTIFICATE or not any(found.level is Level.FAULT for found in own):
            yield _softened(explain(question, contact), sight, bool(reached))
        yield from _certificate(contact)
    yield from own
    configured = {contact.address for contact in sight.contacts}
    for contact in sight.brokers:
        if contact.obstacle is not None and contact.address not in configured:
            said = explain(question, contact)
            yield fault(
                "advertised",
                f"the cluster tells its clients to connect to {contact.address}, and {said.message}",
                f"Set advertised.listeners of that broker to an address that this host reaches, or: {said.mend}",
            )
    if sight.cluster is not None:
        user = f" as {question.security.user!r}" if question.security.user else ""
        yield ok("login", f"the cluster lets us in{user}: {question.security.protocol}")
        return
    if reached or not sight.contacts or isinstance(sight.login_error, ConfigError):
        yield from _login_error(sight)
    yield unknown("repository", "topics and models could not be looked at: mend the connection first")


def _login_error(sight: Sight) -> Iterator[Finding]:
    """What the client library says where each step had gone well."""
    error = sight.login_error
    if error is not None:
        check = "broker"
        if isinstance(error, ConfigError):
            check = "properties"
        elif isinstance(error, AuthorizationError):
            check = "login"
        yield fault(check, error.message, error.hint or "Look into the brokers' logs.")


def _softened(found: Finding, sight: Sight, others_answer: bool) -> Finding:
    """What is wrong with one server of several is a warning; what the client library got over is not known here."""
    if sight.cluster is None:
        return found
    if others_answer:
        return Finding(found.check, Level.WARNING, f"{found.message}; others answer", found.mend)
    return Finding(found.check, Level.UNKNOWN, f"{found.message}; the Kafka client got in all the same", found.mend)


def _certificate(contact: Contact) -> Iterator[Finding]:
    if contact.certificate is None or contact.obstacle in _ABOUT_CERTIFICATE:
        return
    until_ms = contact.certificate.until_ms
    if contact.clock_ms is not None and _ends_soon(contact.certificate, contact.clock_ms):
        yield warning(
            "certificate",
            f"the certificate of {contact.address} expires in {duration(until_ms - contact.clock_ms)}, {day(until_ms)}",
            "Renew it: ssl.keystore.location of that broker's listener.",
        )
    else:
        yield ok("certificate", f"the certificate of {contact.address} is valid until {day(until_ms)}")


def _own_certificates(sight: Sight) -> Iterator[Finding]:
    for setting, path, validities in sight.certificates:
        ended = [one for one in validities if one.until_ms <= sight.at_ms]
        if setting == "ssl.ca.location" and len(ended) < len(validities):
            continue  # a bundle keeps authorities that have ended, and needs only one
        for one in validities[:1]:
            if one.until_ms <= sight.at_ms:
                yield fault(
                    "certificate",
                    f"{setting} ({path}) has expired at {day(one.until_ms)}",
                    "Have it renewed; the broker refuses it.",
                )
            elif one.from_ms > sight.at_ms:
                yield fault(
                    "certificate",
                    f"{setting} ({path}) is not valid before {day(one.from_ms)}",
                    "Set this host's clock: timedatectl set-ntp true",
                )
            elif _ends_soon(one, sight.at_ms):
                yield warning("certificate", f"{setting} ({path}) expires at {day(one.until_ms)}", "Have it renewed.")


def _ends_soon(validity: Validity, at_ms: int) -> bool:
    return validity.until_ms - at_ms < min(EXPIRES_SOON_MS, (validity.until_ms - validity.from_ms) // 4)


def check_versions_of_brokers(question: Question, sight: Sight) -> Iterator[Finding]:
    """Whether every broker speaks what is needed."""
    asked = {contact.address: contact.versions for contact in (*sight.contacts, *sight.brokers) if contact.versions}
    for address, versions in asked.items():
        lacking = [need for api, need in _NEEDED_APIS.items() if versions.apis.get(api, (0, -1))[1] < need[0]]
        if lacking:
            release, lacks = lacking[0][1], "; nor ".join(need[2] for need in lacking)
            yield fault(
                "broker-version",
                f"the broker at {address} is older than Kafka {release}: it can't {lacks}",
                f"Upgrade that broker to Kafka {release} or later.",
            )
        elif (
            not _has_consumer_protocol(versions) and question.properties.get("group.protocol", "").lower() == "consumer"
        ):
            upgrade = tool(question, "kafka-features.sh", "upgrade", "--feature", "group.version=1")
            yield fault(
                "broker-version",
                f"group.protocol=consumer is set, and the cluster of {address} has not switched it on (group.version)",
                f"{upgrade} (Kafka 4.0 or later), or leave group.protocol out.",
            )
        else:
            yield ok("broker-version", f"the broker at {address} speaks all that is needed")


def _has_consumer_protocol(versions: BrokerVersions) -> bool:
    return _CONSUMER_PROTOCOL_API in versions.apis and versions.features.get("group.version", 0) >= 1


def check_clocks(question: Question, sight: Sight) -> Iterator[Finding]:
    """Whether the cluster, and the instances that run, have our time."""
    told = [contact for contact in (*sight.contacts, *sight.brokers) if contact.ahead_ms is not None]
    for contact in told[:1]:  # it is the controller's clock, whoever was asked
        yield _clock("the cluster's clock", contact.ahead_ms or 0)
    if not told and any(contact.clock_error == CLUSTER_AUTHORIZATION_FAILED for contact in sight.contacts):
        principal = f"User:{question.security.user}" if question.security.user else "User:NAME"
        acl = Acl(ResourceKind.CLUSTER, "kafka-cluster", Operation.DESCRIBE)
        yield unknown(
            "clock",
            "the cluster does not tell this login its time",
            add_command([acl], principal=principal, servers=question.servers),
        )
    elif not told and sight.cluster is not None:
        yield unknown("clock", "the cluster did not tell its time (it takes Kafka 3.3, and a login that is known here)")
    skews = sight.repository.skews_ms if sight.repository is not None else {}
    wrong = {name: ms for name, ms in skews.items() if abs(ms) > CLOCK_TOLERATED_MS}
    for name, ms in wrong.items():
        yield _clock(f"the clock of instance {name!r}", ms)
    if len(skews) > len(wrong):
        yield ok("clock", f"{len(skews) - len(wrong)} running instance(s) have our time")


def _clock(whose: str, ahead_ms: int) -> Finding:
    if abs(ahead_ms) <= CLOCK_TOLERATED_MS:
        return ok("clock", f"{whose} and ours agree within {duration(CLOCK_TOLERATED_MS)}")
    side = "ahead of" if ahead_ms > 0 else "behind"
    message = f"{whose} is {duration(ahead_ms)} {side} ours"
    mend = "Set the one that is wrong (chronyc tracking, or timedatectl, says which): timedatectl set-ntp true"
    if abs(ahead_ms) >= CLOCK_REFUSED_MS:
        return fault("clock", f"{message}: Kafka refuses records from an hour ahead, and ages mean nothing", mend)
    return warning("clock", f"{message}: `status` may take instances for lost", mend)
