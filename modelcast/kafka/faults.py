"""What librdkafka's errors mean: one table from error codes to this project's errors.

- Which class an error becomes is decided in `_MEANINGS` only; anything not listed is a BrokerError.
- A broker's refusal says neither what was asked nor of which topic: whoever asked does (`needs`), and a missing ACL is
  told with the line that adds it.
- A client learns of a wrong password or an unknown host on its connection (`error_cb`), while the call that waits for
  it only times out. `Faults` remembers the former to explain the latter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from modelcast.access.acl import ANY_PRINCIPAL, Acl, Operation, ResourceKind, add_command
from modelcast.errors import (
    AuthorizationError,
    BrokerError,
    ConfigError,
    FencedError,
    ModelcastError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicNotFoundError,
    UsageError,
)

# How long an error of the connection explains a timeout: longer than any one call waits, short enough to forget a cause
# that was mended.
_CAUSE_MEMORY_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one error code is to the caller: the class to raise, and what to do about it."""

    error: type[ModelcastError]
    hint: str | None = None


_CREDENTIALS: Final = Meaning(
    AuthorizationError, "Check security.protocol, sasl.* and ssl.* in your client properties."
)
_CERTIFICATE: Final = Meaning(
    AuthorizationError,
    "Has the one of ssl.certificate.location expired (openssl x509 -enddate -noout -in FILE)? Does the broker trust "
    "who issued it?",
)
# To the client a connection that ended like any other: only the alert's name tells.
_REFUSED_CERTIFICATE: Final = re.compile(r"alert .*certificate")
_ACL: Final = Meaning(
    AuthorizationError, "The cluster's operators can allow it; what each role needs is printed by: modelcast acl ROLE"
)
_FENCED: Final = Meaning(FencedError, "Another process holds this transactional id now; start over to take it back.")
_REBALANCED: Final = Meaning(BrokerError, "The group was rebalanced meanwhile: go on from the committed offsets.")
_TOO_LARGE: Final = Meaning(
    RecordTooLargeError, "Raise max.message.bytes of the topic and message.max.bytes of the client, or send less."
)
# A broker that finds no room on a disk serves nothing that lies there until it is started again.
NO_LEADER_HINT: Final = (
    "A broker that has it is down, or its disk is full or failed: its log says so. Once that is mended, restart it "
    "and try again."
)
_NO_LEADER: Final = Meaning(BrokerError, NO_LEADER_HINT)

_MEANINGS: Final[dict[int, Meaning]] = {
    KafkaError._AUTHENTICATION: _CREDENTIALS,
    KafkaError.SASL_AUTHENTICATION_FAILED: _CREDENTIALS,
    KafkaError.UNSUPPORTED_SASL_MECHANISM: _CREDENTIALS,
    KafkaError.ILLEGAL_SASL_STATE: _CREDENTIALS,
    KafkaError._SSL: _CREDENTIALS,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _ACL,
    KafkaError.GROUP_AUTHORIZATION_FAILED: _ACL,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _ACL,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: _ACL,
    KafkaError.UNKNOWN_TOPIC_OR_PART: Meaning(TopicNotFoundError),
    KafkaError._UNKNOWN_TOPIC: Meaning(TopicNotFoundError),
    KafkaError._UNKNOWN_PARTITION: Meaning(TopicNotFoundError),
    KafkaError._FENCED: _FENCED,
    KafkaError.PRODUCER_FENCED: _FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH: _FENCED,
    # The coordinator answers so when another producer's transaction under the id is not finished, and to a producer
    # whose id it forgot: both mean that this producer is no longer the holder.
    KafkaError.INVALID_PRODUCER_ID_MAPPING: _FENCED,
    KafkaError.FENCED_INSTANCE_ID: Meaning(FencedError, "Another process runs as this instance; give each its own."),
    KafkaError.ILLEGAL_GENERATION: _REBALANCED,
    KafkaError.UNKNOWN_MEMBER_ID: _REBALANCED,
    KafkaError.STALE_MEMBER_EPOCH: _REBALANCED,
    KafkaError.REBALANCE_IN_PROGRESS: _REBALANCED,
    KafkaError._AUTO_OFFSET_RESET: Meaning(
        OffsetOutOfRangeError, "Records from there on were deleted by retention, or the topic was made anew."
    ),
    KafkaError.OFFSET_OUT_OF_RANGE: Meaning(
        OffsetOutOfRangeError, "Records from there on were deleted by retention, or the topic was made anew."
    ),
    KafkaError.MSG_SIZE_TOO_LARGE: _TOO_LARGE,
    KafkaError.KAFKA_STORAGE_ERROR: _NO_LEADER,
    KafkaError.LEADER_NOT_AVAILABLE: _NO_LEADER,
    KafkaError._NOENT: _NO_LEADER,  # asked for offsets, the client says so where no partition has a leader
    KafkaError._MAX_POLL_EXCEEDED: Meaning(BrokerError, "Raise max.poll.interval.ms, or take smaller batches."),
    KafkaError._INVALID_ARG: Meaning(ConfigError, "The names are librdkafka's: see its CONFIGURATION.md."),
    KafkaError.INVALID_REPLICATION_FACTOR: Meaning(
        BrokerError, "Ask for no more replicas than there are brokers: --replication-factor of modelcast init."
    ),
    KafkaError.TOPIC_EXCEPTION: Meaning(
        UsageError, "Use 1 to 249 letters, digits, '.', '_' and '-' as a topic's name."
    ),
    KafkaError.POLICY_VIOLATION: Meaning(BrokerError, "The cluster's policy forbids it; ask its operators."),
}

# Which kind of resource was refused. A producer that may write to no topic at all is refused by the cluster: what it
# lacks is its topic.
_DENIED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: ResourceKind.TOPIC,
    KafkaError.GROUP_AUTHORIZATION_FAILED: ResourceKind.GROUP,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: ResourceKind.TRANSACTIONAL_ID,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: ResourceKind.TOPIC,
}

# Nobody answered: the only codes for which an error seen on the connection is the better explanation.
_NO_ANSWER: Final = frozenset({
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT, KafkaError._RESOLVE, KafkaError._WAIT_COORD, KafkaError.REQUEST_TIMED_OUT,
})  # fmt: skip
# Causes worth remembering, the most telling first.
_CAUSES: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE, KafkaError._TRANSPORT)

# Errors that show up while polling and heal by themselves.
PASSING: Final = frozenset({
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT,
    KafkaError._PARTITION_EOF, KafkaError._WAIT_COORD, KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.REPLICA_NOT_AVAILABLE, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.KAFKA_STORAGE_ERROR, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._DESTROY_BROKER,
})  # fmt: skip


def reading(topic: str | None) -> Acl | None:
    """What reading a topic needs."""
    return None if topic is None else Acl(ResourceKind.TOPIC, topic, Operation.READ)


def writing(topic: str | None) -> Acl | None:
    """What writing to a topic needs."""
    return None if topic is None else Acl(ResourceKind.TOPIC, topic, Operation.WRITE)


def error_of(exception: KafkaException) -> KafkaError:
    """The error inside librdkafka's exception."""
    error: KafkaError = exception.args[0]
    return error


def failure_of(call: Callable[[], object]) -> KafkaError | None:
    """Why a call of the client failed; None if it did not.

    For whoever serves the client next (`connection.serve`): a client that is beyond help says so then, and keeps the
    exception that is being handled at that moment for ever, with all that its traceback leads to: the client itself.
    """
    try:
        call()
    except KafkaException as exception:
        return error_of(exception)
    return None


class Faults:
    """Explains the errors of one client, remembering what its connections said. Thread-safe.

    Args:
        servers: The brokers, as the user named them.
        principal: Whom ACLs are for, as far as is known.
        group: The consumer group the client is of.
        transactional_id: The one the client holds.
    """

    def __init__(
        self,
        servers: str,
        *,
        principal: str = ANY_PRINCIPAL,
        group: str | None = None,
        transactional_id: str | None = None,
    ) -> None:
        self._servers = servers
        self._principal = principal
        self._own = (
            *((Acl(ResourceKind.GROUP, group, Operation.READ),) if group is not None else ()),
            *((Acl(ResourceKind.TRANSACTIONAL_ID, transactional_id, Operation.WRITE),) if transactional_id else ()),
        )
        self._lock = Lock()
        self._causes: dict[int, tuple[float, KafkaError]] = {}
        self._fatal: KafkaError | None = None

    def on_error(self, error: KafkaError) -> None:
        """librdkafka's `error_cb`."""
        with self._lock:
            if error.code() in _CAUSES:
                self._causes[error.code()] = (time.monotonic(), error)
            if error.fatal():
                self._fatal = error

    def fatal(self) -> KafkaError | None:
        """The error after which this client can't go on, if there was one."""
        return self._fatal

    def explain(self, error: KafkaError, doing: str, needs: Acl | None = None) -> ModelcastError:
        """The error to raise for `error`, which stopped `doing` (such as "can't read topic 'x'").

        Args:
            error: librdkafka's.
            doing: What can't be done.
            needs: What has to be allowed for it, beside the use of this client's group and transactional id.
        """
        if error.code() in _NO_ANSWER:
            return self._no_answer(error, doing)
        missing = self._missing(error, needs)
        return self._meaning(error, doing) if missing is None else self.denied(missing, doing)

    def denied(self, missing: Acl, doing: str) -> AuthorizationError:
        """The error to raise where an ACL is missing."""
        line = add_command([missing], principal=self._principal, servers=self._servers)
        return AuthorizationError(
            f"{doing}: not allowed, the ACL {missing} is missing",
            hint=f"The cluster's operators can add it: {line}",
            details={"missing_acl": {**missing.as_dict(), "principal": self._principal}},
        )

    def _missing(self, error: KafkaError, needs: Acl | None) -> Acl | None:
        kind = _DENIED.get(error.code())
        candidates = self._own if needs is None else (needs, *self._own)
        return next((acl for acl in candidates if acl.kind is kind), None)

    def _no_answer(self, error: KafkaError, doing: str) -> ModelcastError:
        cause = self._cause()
        if cause is not None and cause.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            return self._meaning(cause, doing)
        if cause is not None and _REFUSED_CERTIFICATE.search(cause.str()):
            return _CERTIFICATE.error(
                f"{doing}: the broker refuses our certificate ({_tidy(cause.str())})", hint=_CERTIFICATE.hint
            )
        if error.code() == KafkaError._MSG_TIMED_OUT and cause is None:
            return BrokerError(f"{doing}: not acknowledged in time", hint="Are enough replicas in sync?")
        why = f" ({_tidy(cause.str())})" if cause is not None else ""
        return BrokerError(
            f"{doing}: no broker answers at {self._servers}{why}",
            hint="Is it running, and are bootstrap.servers and security.protocol right?",
        )

    def _cause(self) -> KafkaError | None:
        now = time.monotonic()
        with self._lock:
            for code in _CAUSES:
                seen = self._causes.get(code)
                if seen is not None and now - seen[0] < _CAUSE_MEMORY_S:
                    return seen[1]
        return None

    @staticmethod
    def _meaning(error: KafkaError, doing: str) -> ModelcastError:
        meaning = _MEANINGS.get(error.code(), Meaning(BrokerError))
        return meaning.error(f"{doing}: {_tidy(error.str())}", hint=meaning.hint)


def explain_construction(exception: KafkaException) -> ModelcastError:
    """A client could not even be made: a property is wrong."""
    error: Any = exception.args[0]
    text = error.str() if isinstance(error, KafkaError) else str(error)
    return ConfigError(
        f"the Kafka client refuses its properties: {_tidy(text)}", hint=_MEANINGS[KafkaError._INVALID_ARG].hint
    )


def _tidy(text: str) -> str:
    """The part of librdkafka's sentence that says why."""
    text = re.sub(r" \(after \d+ms in state \w+(?:, \d+ identical error\(s\) suppressed)?\)", "", text)
    text = re.sub(r"^.*?: (?:Connect to \S+ failed|Failed to resolve '[^']*'): ", "", text)
    text = re.sub(r"^(?:Unable to produce message: |Message failed: )", "", text)
    return re.sub(r"^(?:Broker|Local): ", "", text).rstrip(". ")
