"""Every error modelcast raises on purpose, in one tree.

    ModelcastError
    ├── UsageError                    you misused this (exit code 2)
    │   ├── ConfigError               a setting or properties file is wrong
    │   ├── SourceError               a file or model given to a command can't be read
    │   └── MissingExtraError         an optional package is not installed
    ├── BrokerError                   Kafka is not there, or will not do it (3)
    │   ├── TopicConfigError          a topic exists with settings that would lose data
    │   ├── AuthorizationError        an ACL or a credential is missing
    │   ├── OffsetOutOfRangeError     the records to read are gone
    │   ├── OutcomeUnknownError       a commit was sent and its answer never came
    │   └── SchemaRegistryError       a Schema Registry is not there, or does not answer as one
    ├── StoreError                    an object store is not there, or refuses (3)
    ├── NotFoundError                 the named thing does not exist (4)
    │   ├── TopicNotFoundError
    │   ├── ModelNotFoundError
    │   ├── VersionNotFoundError
    │   └── RepositoryNotFoundError   `modelcast init` was not run on this prefix
    ├── ModelRefusedError             a model failed a check (5); `reason` names the check
    │   ├── ConversionError           a converter could not express the estimator in ONNX
    │   ├── StructureError            the graph asks for something that is not allowed
    │   ├── SmokeRunError             the child process that tried the model failed or was killed
    │   ├── ParityError               the ONNX graph and its original disagree
    │   ├── IntegrityError            bytes do not match their digest or declared size
    │   ├── StoreNotAllowedError      the files lie in a store this process was not told to read
    │   ├── BindingError              inputs can't be bound to the fields of the events
    │   ├── GoldenError               golden examples were not reproduced, or are not finite
    │   ├── LoadError                 the runtime could not build a session
    │   │   └── OutOfMemoryError      there is not enough memory for it now
    │   └── QuarantinedError          processes died loading it; left alone for a while
    ├── CacheError                    the cache of model files can't be read or written (1)
    ├── GateError                     a published requirement was not met (6)
    ├── FencedError                   another holder of the transactional id took over (7)
    ├── WorkerError                   a worker process ended again and again, or did not end (1)
    └── WireError                     a topic holds bytes that are not what they should be (1)
        ├── UnknownSchemaError        a fingerprint no schema is known for (yet)
        └── NewerFormatError          a record of the repository, written by a newer modelcast

A message says what happened, to which thing, and what to do; the last of these is `hint`. Whether trying the same
thing again can help is decided here only, by `retriable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """What a command's exit status means; documented in the README."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    BROKER = 3
    NOT_FOUND = 4
    MODEL_REFUSED = 5
    GATE = 6
    FENCED = 7
    INTERRUPTED = 130


class ModelcastError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: What happened, and to which thing.
        hint: What to do about it, as one sentence or a command line.
        details: What programs may want of it, as JSON data.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: Mapping[str, Any] = details or {}

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}. {self.hint}"


class UsageError(ModelcastError):
    """The caller asked for something that can't be."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A setting, environment variable or properties file is wrong."""


class SourceError(UsageError):
    """A file or object handed to a command can't be read or is not what it should be."""


class MissingExtraError(UsageError):
    """An optional package is not installed; the hint is the pip line that installs it."""


class BrokerError(ModelcastError):
    """Kafka could not be reached, or refused."""

    exit_code = ExitCode.BROKER
    retriable = True  # brokers come back


class TopicConfigError(BrokerError):
    """A topic exists with a configuration that would lose data; the hint holds the command that mends it."""

    retriable = False  # a person has to mend it


class RecordTooLargeError(BrokerError):
    """A record is larger than its topic takes, or than the client that is to send it may hold; the hint names which."""


class AuthorizationError(BrokerError):
    """Authentication failed, or an ACL is missing."""

    retriable = False  # the same credentials get the same answer


class OffsetOutOfRangeError(BrokerError):
    """The records to read are gone (retention), or the topic is not the one it was."""

    retriable = False  # they do not come back


class OutcomeUnknownError(BrokerError):
    """A commit was sent and its outcome is not known: drop the producer, take a new one with the same id, re-read."""

    retriable = False  # never inside the same producer


class SchemaRegistryError(BrokerError):
    """A Schema Registry could not be asked: it is away, refuses the credentials, or is none."""

    retriable = True  # it comes back, and its rules are mended on its side


class StoreError(ModelcastError):
    """The object store that holds a model's files could not be reached, or refused."""

    exit_code = ExitCode.BROKER
    retriable = True  # stores come back, and credentials and buckets are mended without a word in the registry


class NotFoundError(ModelcastError):
    """The named thing does not exist."""

    exit_code = ExitCode.NOT_FOUND


class TopicNotFoundError(NotFoundError):
    """No topic of that name."""


class ModelNotFoundError(NotFoundError):
    """No model of that name in the registry."""


class VersionNotFoundError(NotFoundError):
    """The model has no such version."""


class RepositoryNotFoundError(NotFoundError):
    """The prefix holds no repository: `modelcast init` was never run."""


class ModelRefusedError(ModelcastError):
    """A model failed a check and will not be published, or will not go live.

    `reason` is a stable word for status records, metrics and tests.
    """

    exit_code = ExitCode.MODEL_REFUSED
    reason: ClassVar[str] = "refused"


class ConversionError(ModelRefusedError):
    """A converter could not express the estimator in ONNX."""

    reason = "conversion"


class StructureError(ModelRefusedError):
    """The graph, or a file of the model, asks for something that is not allowed or not supported."""

    reason = "structure"


class SmokeRunError(ModelRefusedError):
    """The limited child process that tried the model failed, ran out of time or memory, or died."""

    reason = "smoke-run"


class ParityError(ModelRefusedError):
    """The converted graph does not give what the original model gives."""

    reason = "parity"


class IntegrityError(ModelRefusedError):
    """Bytes do not have the digest or the size the manifest declares."""

    reason = "integrity"


class StoreNotAllowedError(ModelRefusedError):
    """The version's files lie in an object store that this process was not told to read."""

    reason = "store-not-allowed"


class BindingError(ModelRefusedError):
    """The model's inputs can't be bound to the fields of the events (or examples)."""

    reason = "binding"


class GoldenError(ModelRefusedError):
    """The golden examples were not reproduced within tolerance, or gave values that are not finite."""

    reason = "golden"


class LoadError(ModelRefusedError):
    """The runtime could not build a session, or did not within its deadline."""

    reason = "load"


class OutOfMemoryError(LoadError):
    """A version does not fit the memory, of the host or of a device, that is free now."""

    reason = "out-of-memory"
    retriable = True  # what is loaded now will be let go


class CacheError(ModelcastError):
    """The folder that holds fetched models is full, read-only or not this user's; says nothing of the model."""

    retriable = True  # space is freed, permissions are mended


class QuarantinedError(ModelRefusedError):
    """Processes died while they loaded this content, so it is not tried for a while."""

    reason = "quarantined"
    retriable = True  # quarantine ends by itself


class GateError(ModelcastError):
    """A requirement named at publish was not met."""

    exit_code = ExitCode.GATE


class FencedError(ModelcastError):
    """Another process took over the transactional id; nothing of this transaction is visible."""

    exit_code = ExitCode.FENCED
    retriable = True  # by starting over from init_transactions, a bounded number of times


class WorkerError(ModelcastError):
    """A worker process ended again and again without a word, or did not end when it was asked to."""


class WireError(ModelcastError):
    """A topic holds bytes that are not what they should be."""


class UnknownSchemaError(WireError):
    """A single-object record names a fingerprint no schema is known for (yet)."""

    retriable = True  # its writer may be slow to describe it


class NewerFormatError(WireError):
    """A record of the repository that a newer modelcast wrote: it can't be read here, and must not be overwritten."""
