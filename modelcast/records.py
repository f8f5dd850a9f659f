"""What the registry and status topics hold, as values. Wire format: `modelcast.codec`.

All values are frozen. Times are epoch milliseconds (`_ms`), sizes bytes (`_bytes` or `size`), digests `sha256:…`.
A shape is per batch: its first dimension is the batch (None); None stands for any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelcast import digest
from modelcast.names import ModelVersion, avro_name

Shape = tuple[int | None, ...]

# Names of the files every version has.
GRAPH_PATH = "model.onnx"
EXAMPLES_PATH = "examples.npz"

# What `init` writes. A higher one is of a repository whose rules this version of modelcast does not know.
FORMAT_VERSION = 1

# Avro names a prediction uses for its lineage; no output may take them.
RESERVED_OUTPUTS = frozenset({"model", "version", "source"})


class DType(StrEnum):
    """Tensor element types that can be bound to events, by numpy's names."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT64 = "int64"
    INT32 = "int32"
    BOOL = "bool"
    STRING = "string"
    UINT8 = "uint8"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a version: its path within the tree, size and digest."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class InputBinding:
    """One graph input and the event fields that feed it.

    Attributes:
        name: The ONNX input.
        dtype: Its element type.
        shape: Its shape, batch first: `(None,)`, `(None, 1)`, `(None, F)` or `(None, d1, …, dk)`.
        fields: The event fields in order: one for a column, F for a matrix of F columns, one that holds the whole row
            for any other shape.
    """

    name: str
    dtype: DType
    shape: Shape
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One graph output. `[N]` and `[N, 1]` are scalars of a prediction, `[N, K…]` a flat array of K values."""

    name: str
    dtype: DType
    shape: Shape
    field: str

    @property
    def width(self) -> int:
        """Values a prediction holds for this output; 1 for a scalar."""
        width = 1
        for size in self.shape[1:]:
            width *= size or 1
        return width

    @property
    def is_scalar(self) -> bool:
        return self.shape[1:] in ((), (1,))

    @classmethod
    def named(cls, name: str, dtype: DType, shape: Shape) -> OutputSpec:
        """With the Avro name derived from the ONNX name."""
        return cls(name, dtype, shape, avro_name(name))


@dataclass(frozen=True, slots=True)
class NullRule:
    """What an event field counts as where it is null or not there: a value of its type as text, e.g. "nan"."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, and the fields of events it takes it from.

    Attributes:
        nulls: At most one for each field of one value; without one, an event whose field is null can't be scored.
    """

    inputs: tuple[InputBinding, ...]
    outputs: tuple[OutputSpec, ...]
    nulls: tuple[NullRule, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Every event field the model needs, once, in order of first use."""
        return tuple(dict.fromkeys(name for binding in self.inputs for name in binding.fields))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How near golden outputs must be reproduced: `|got - want| <= absolute + relative * |want|`."""

    relative: float = 1e-4
    absolute: float = 1e-5


@dataclass(frozen=True, slots=True)
class LoadProbe:
    """What loading and running the version on its examples took in the publisher's child process."""

    load_ms: float
    run_ms: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The immutable description of one version.

    Attributes:
        repository: UUID of the repository it was published to; a manifest counts nowhere else.
        files: Sorted by path.
        chunk_bytes: Size of every chunk of every file but the last of each.
        opsets: Operator set versions the graph imports, by domain ("" is ONNX's own).
        frameworks: What trained and converted it, as package -> version.
        metrics: What the publisher stated or measured, e.g. {"auc": 0.91}.
        gates: Requirements it met when it was published, with what was measured.
        store: URL under which the files lie by their digests; None where they are chunks on the blobs topic.
    """

    repository: str
    model: str
    version: int
    created_ms: int
    created_by: str
    message: str
    files: tuple[FileEntry, ...]
    chunk_bytes: int
    signature: Signature
    ir_version: int
    opsets: Mapping[str, int]
    tolerance: Tolerance = Tolerance()
    probe: LoadProbe | None = None
    frameworks: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[str, ...] = ()
    store: str | None = None

    @property
    def id(self) -> ModelVersion:
        return ModelVersion(self.model, self.version)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    @property
    def digest(self) -> str:
        """Digest of the version's content: its files' paths, sizes and digests; the same content gives the same."""
        return content_digest(self.files)


def content_digest(files: tuple[FileEntry, ...]) -> str:
    """Digest of a file tree: SHA-256 over `path NUL size NUL digest LF` of each file in path order."""
    ordered = sorted(files, key=lambda entry: entry.path)
    return digest.of_bytes("".join(f"{e.path}\0{e.size}\0{e.digest}\n" for e in ordered).encode())


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Stands for ever in the place of a deleted version; its number is never used again."""

    repository: str
    model: str
    version: int
    created_ms: int
    created_by: str
    message: str


@dataclass(frozen=True, slots=True)
class Release:
    """Makes one version the champion.

    Attributes:
        sequence: From 1, per model, without reuse; the highest is in force.
        restores: For a rollback, the sequence whose release it repeats; None for a release of its own.
    """

    repository: str
    model: str
    sequence: int
    version: int
    created_ms: int
    created_by: str
    message: str
    restores: int | None = None

    @property
    def id(self) -> ModelVersion:
        return ModelVersion(self.model, self.version)

    @property
    def origin(self) -> int:
        """The sequence this release stands for in the history a rollback walks."""
        return self.sequence if self.restores is None else self.restores


@dataclass(frozen=True, slots=True)
class RepositoryIdentity:
    """The first record of a registry. A topic recreated gets a new UUID, so old caches and marks do not apply."""

    uuid: str
    created_ms: int
    format_version: int


@dataclass(frozen=True, slots=True)
class ChunkHint:
    """Where the chunks of one file were when they were written. Unsigned: a place to look first, never proof."""

    digest: str
    partition: int
    first_offset: int
    last_offset: int


@dataclass(frozen=True, slots=True)
class EnvelopeSignature:
    """One signature over the pre-authentication encoding of an envelope's payload (DSSE)."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a registry value is: payload bytes with their type, signatures over both, and unsigned hints."""

    payload_type: str
    payload: bytes
    signatures: tuple[EnvelopeSignature, ...] = ()
    hints: tuple[ChunkHint, ...] = ()


class ModelState(StrEnum):
    """What an instance does with one model."""

    WAITING = "waiting"  # nothing released, or nothing acceptable yet
    LOADING = "loading"
    LIVE = "live"
    STOPPED = "stopped"
    IDLE = "idle"  # unloaded for want of memory; loaded again when somebody asks for it


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version an instance would not make live, and why. `reason` is `ModelRefusedError.reason`."""

    version: int
    reason: str
    message: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model on one instance.

    Attributes:
        since_ms: When `live_version` went live here.
        load_ms: What its loading took, fetch to ready.
        release_to_live_ms: From the release's creation until it was live here (clocks of two hosts).
        swaps: Live versions replaced since the instance started.
        wanted_version: The version that the registry wants here, the champion or the one pinned; None if there is none.
        next_version: The version on its way to be live; None if there is none.
        next_state: How far it is, as `consumer.lifecycle.State` calls it.
        events: Events scored, or predictions asked for, since the instance started.
        events_per_s: Of those, over the last seconds; None where nobody counts.
        lag: Events that wait in the partitions this instance has; None where there are none, or Kafka did not say.
        dead_letters: Events that could not be scored since the instance started; None where there can't be any.
        stale: What is known of this model is older than it may be.
    """

    model: str
    pinned: int | None
    state: ModelState
    live_version: int | None = None
    since_ms: int | None = None
    load_ms: float | None = None
    release_to_live_ms: float | None = None
    swaps: int = 0
    refusals: tuple[Refusal, ...] = ()
    wanted_version: int | None = None
    next_version: int | None = None
    next_state: str | None = None
    events: int = 0
    events_per_s: float | None = None
    lag: int | None = None
    dead_letters: int | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What one consumer says of itself on the status topic.

    Attributes:
        repository: UUID of the repository it follows; empty before that was read.
        at_ms: When it said so.
        started_ms: When it started.
        heartbeat_ms: It says so at least this often; whoever reads decides after how many missed it is lost.
        stale_ms: For how long the registry could not be followed; None while it is.
        ended: This is its last word: it ended in good order.
    """

    repository: str
    instance: str
    host: str
    pid: int
    role: str
    device: str
    at_ms: int
    runtime: Mapping[str, str]
    models: tuple[ModelStatus, ...]
    started_ms: int | None = None
    heartbeat_ms: int = 5_000
    stale_ms: int | None = None
    ended: bool = False
