"""One transaction after another on one producer: the legal moves, and what each failure means.

    READY --begin--> OPEN --commit/abort--> READY        any --fatal error, unknown outcome--> BROKEN

- A failure that only spoils the transaction aborts it and raises BrokerError: nothing of it is visible, go on.
- A fatal one leaves the producer BROKEN: every later move but `abort` raises the same error.
- A commit whose answer does not come is BROKEN with OutcomeUnknownError. It is never tried again by this producer: only
  a new one with the same id learns how it ended (`init_transactions` waits for the coordinator).
- `abort` is allowed in every state and never raises: what can't be aborted now ends with the transaction's timeout or
  with the next holder of the id, and is not visible in either case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, Producer

from modelcast.access.acl import Acl
from modelcast.errors import BrokerError, FencedError, ModelcastError, OutcomeUnknownError, UsageError

from .connection import serve
from .faults import Faults, failure_of, writing
from .settings import LOGGER

# The coordinator of a cluster just started loads for a second or two; ending a predecessor's transaction takes as long.
INIT_TIMEOUT_S: Final = 30.0
# A broker killed and restarted answers after 3 s, an election in a cluster takes 4 to 6 s.
COMMIT_TIMEOUT_S: Final = 30.0
# An abort is cleanup: who waits for it wants to go on or to leave.
ABORT_TIMEOUT_S: Final = 10.0
OFFSETS_TIMEOUT_S: Final = 15.0
# A call may learn that the producer is dead a moment before the reason is in the queue.
_CAUSE_TIMEOUT_S: Final = 1.0
_PAUSE_S: Final = 0.02

_TIMEOUTS: Final = frozenset({KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError.REQUEST_TIMED_OUT})


class State(Enum):
    """Where a transactional producer stands."""

    READY = auto()
    OPEN = auto()
    BROKEN = auto()


class Transactions:
    """The transactions of one producer; used by the thread that owns the producer."""

    def __init__(self, producer: Producer, faults: Faults, transactional_id: str) -> None:
        self._producer = producer
        self._faults = faults
        self._id = transactional_id
        self._state = State.READY
        self._written: set[str] = set()
        self._broken_by: ModelcastError | None = None

    @property
    def state(self) -> State:
        """Where the producer stands."""
        return self._state

    def take_id(self) -> None:
        """`init_transactions`: fences the id's holder and ends what it left open."""
        self._bounded(self._producer.init_transactions, INIT_TIMEOUT_S, f"can't take transactional id {self._id!r}")

    def begin(self) -> None:
        """READY -> OPEN."""
        self.check()
        if self._state is State.OPEN:
            raise UsageError(f"a transaction of {self._id!r} is open already", hint="Commit or abort it first.")
        error = failure_of(self._producer.begin_transaction)
        if error is not None:
            raise self.failed(error, f"can't begin a transaction of {self._id!r}")
        self._state = State.OPEN
        self._written.clear()

    def writes(self, topic: str) -> None:
        """Remembers what the open transaction writes to: a broker that refuses it does not say which topic."""
        self._written.add(topic)

    def check_open(self) -> None:
        """Raises unless records may be added now."""
        self.check()
        if self._state is not State.OPEN:
            raise UsageError(f"no transaction of {self._id!r} is open", hint="Call begin() first.")

    def check(self) -> None:
        """Raises what broke this producer, if anything did."""
        if self._broken_by is not None:
            raise _copy(self._broken_by)
        fatal = self._faults.fatal()
        if fatal is not None:
            raise self.failed(fatal, f"transactional id {self._id!r} is lost")

    def run(self, call: Callable[[float], None], timeout_s: float, doing: str, needs: Acl | None = None) -> None:
        """A step inside the open transaction (adding offsets); a failure aborts it."""
        self.check_open()
        self._bounded(call, timeout_s, doing, needs)

    def commit(self) -> None:
        """OPEN -> READY, everything visible; see the module's rules for what is raised otherwise."""
        self.check_open()
        doing = f"can't commit the transaction of {self._id!r}"
        deadline = time.monotonic() + COMMIT_TIMEOUT_S
        while True:
            left_s = max(_PAUSE_S, deadline - time.monotonic())
            error = failure_of(partial(self._producer.commit_transaction, left_s))
            if error is None:
                self._state = State.READY
                return
            if error.retriable() and error.code() not in _TIMEOUTS and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)
            elif error.txn_requires_abort():
                raise self.failed(error, doing)
            else:
                raise self._break(self._in_doubt(error, doing))

    def unanswered(self, doing: str) -> ModelcastError:
        """The error to raise for a call that did not return: the producer is in the middle of it, and BROKEN."""
        return self._break(
            OutcomeUnknownError(
                f"{doing}: no answer, and the client does not give up by itself",
                hint="A new producer with the same transactional id ends the transaction.",
            )
        )

    def abort(self) -> None:
        """Drops what is open; allowed in every state, never raises."""
        if self._state is not State.OPEN:
            return
        self._state = State.READY
        failed = failure_of(partial(self._producer.abort_transaction, ABORT_TIMEOUT_S))
        if failed is not None:
            error = self._faults.explain(failed, f"can't abort the transaction of {self._id!r}")
            LOGGER.warning("%s; it ends with its timeout or the next holder of the id", error)
            self._break(error)

    def failed(self, error: KafkaError, doing: str, needs: Acl | None = None) -> ModelcastError:
        """The error to raise for a failure of this producer, after putting its state right; see `Faults.explain`."""
        if needs is None and len(self._written) == 1:
            needs = writing(*self._written)
        if error.fatal() or error.code() in (KafkaError._FENCED, KafkaError._FATAL):
            return self._break(self._lost(error, doing, needs))
        explained = self._faults.explain(error, doing, needs)
        if isinstance(explained, FencedError):
            return self._break(explained)
        if self._state is State.OPEN and error.txn_requires_abort():
            self.abort()
            return _aborted(explained)
        return explained

    def _bounded(self, call: Callable[[float], None], timeout_s: float, doing: str, needs: Acl | None = None) -> None:
        deadline = time.monotonic() + timeout_s
        while (error := failure_of(partial(call, max(_PAUSE_S, deadline - time.monotonic())))) is not None:
            if not error.retriable() or time.monotonic() >= deadline:
                raise self._given_up(error, doing, needs)
            time.sleep(_PAUSE_S)

    def _given_up(self, error: KafkaError, doing: str, needs: Acl | None) -> ModelcastError:
        explained = self.failed(error, doing, needs)
        if self._state is not State.OPEN:
            return explained
        self.abort()
        return _aborted(explained)

    def _lost(self, error: KafkaError, doing: str, needs: Acl | None = None) -> ModelcastError:
        """A fatal error names its cause in its text only, if at all; the code comes over the connection's queue."""
        if error.code() == KafkaError._FATAL:
            deadline = time.monotonic() + _CAUSE_TIMEOUT_S
            while self._faults.fatal() is None and time.monotonic() < deadline:
                serve(self._producer, self._faults)
                time.sleep(_PAUSE_S)
        fatal = self._faults.fatal()
        return self._faults.explain(fatal if error.code() == KafkaError._FATAL and fatal else error, doing, needs)

    def _in_doubt(self, error: KafkaError, doing: str) -> ModelcastError:
        explained = self._lost(error, doing)
        if isinstance(explained, FencedError) or not isinstance(explained, BrokerError):
            return explained
        return OutcomeUnknownError(
            f"{explained.message}; whether it was committed is not known",
            hint="A new producer with the same transactional id finds out; then read what is there.",
        )

    def _break(self, error: ModelcastError) -> ModelcastError:
        self._state = State.BROKEN
        # A copy: the error's own traceback leads back here, and such a circle would keep a dropped client alive (trying
        # its commit again, in vain) until the cycle collector finds it.
        self._broken_by = _copy(error)
        return error


def _copy(error: ModelcastError) -> ModelcastError:
    return type(error)(error.message, hint=error.hint, details=error.details)


def _aborted(error: ModelcastError) -> ModelcastError:
    if not isinstance(error, BrokerError) or error.message.endswith("was aborted"):
        return error
    return type(error)(f"{error.message}; the transaction was aborted", hint=error.hint, details=error.details)
