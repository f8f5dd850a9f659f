"""`ModelClient`: published models inside an application, always in the version that is live.

- A model is subscribed to when it is first named, and from then on kept up to date in the background.
- `predict` takes a lease on the live version: a swap never interrupts it, nor waits for it.
- Kafka may go away: what is live goes on predicting, and `stale_s` says for how long it heard nothing.
- One client a process: after a fork every call says so, since threads and connections stay behind.

    with ModelClient("localhost:9092") as models:
        scores = models["fraud"].predict({"amount": [12.5, 80.0], "country": ["de", "fr"]})
        scores["score"], scores.version
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from modelcast import folders, runtime
from modelcast.config import Connection
from modelcast.errors import UsageError
from modelcast.files.store_url import Stores
from modelcast.log import Log
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import InstanceStatus, Refusal, Signature
from modelcast.runtime import Array
from modelcast.topics import Topics
from modelcast.trust.watch import watch_policy

from .control import ControlPlane
from .line import Swapped
from .loader import Loader
from .rows import Rows, columns_of

if TYPE_CHECKING:
    from .slot import Slot

# A large model on a slow disk or network; an application that starts can't do without its model anyway.
DEFAULT_TIMEOUT_S: Final = 60.0

_NUMBERS = itertools.count()


class Prediction(Mapping[str, Array]):
    """Outputs by ONNX output name, batch first, and the version that made them."""

    __slots__ = ("_outputs", "id")

    def __init__(self, version: ModelVersion, outputs: Mapping[str, Array]) -> None:
        self.id = version
        self._outputs = outputs

    @property
    def version(self) -> int:
        return self.id.version

    def __getitem__(self, name: str) -> Array:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"Prediction({self.id}, {dict(self._outputs)!r})"


class Model:
    """One model, or one pinned version; made by `ModelClient`. Thread-safe."""

    def __init__(self, client: ModelClient, ref: ModelRef, slot: Slot) -> None:
        self._client = client
        self.ref = ref
        self._slot = slot

    @property
    def version(self) -> int | None:
        """The live version; None while there is none."""
        live = self._slot.live
        return None if live is None else live.id.version

    @property
    def signature(self) -> Signature | None:
        """What the live version takes and gives; None while there is none."""
        live = self._slot.live
        return None if live is None else live.manifest.signature

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The latest versions this application would not make live, and why; oldest first."""
        return self._client._open_plane().refusals(self.ref)

    def predict(self, rows: Rows) -> Prediction:
        """Runs the live version on rows.

        Args:
            rows: Values by event field (arrays, lists, scalars), a list of records, or a Polars or pandas frame.
                Fields the model does not take are ignored.

        Returns:
            Arrays by output name, N rows each, and the version.

        Raises:
            BindingError: A field is missing, null or of the wrong kind.
            ModelNotFoundError: No version is live (yet).
            LoadError: The model failed on these rows.
        """
        self._client._check_usable()
        with self._slot.lease() as servable:
            return Prediction(servable.id, servable.run(columns_of(rows, servable.binding.specs)))

    def wait_live(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Waits until a version is live, also for one not published yet; raises as `ModelClient[...]`."""
        self._client._open_plane().wait_live(self.ref, timeout_s)
        return self

    def on_swap(self, callback: Callable[[Swapped], None]) -> None:
        """Calls back after each version that goes live, on a background thread: be quick."""
        self._client._open_plane().on_swap(lambda event: callback(event) if event.ref == self.ref else None)

    def __repr__(self) -> str:
        return f"<Model {self.ref}, live version {self.version}>"


class _Connects(Protocol):
    @property
    def topics(self) -> Topics: ...

    def open_log(self) -> Log: ...


class ModelClient:
    """Predicts with published models in process. Use as a context manager; thread-safe.

    Args:
        bootstrap_servers: `host:port[,…]`; by default `MODELCAST_BOOTSTRAP_SERVERS`, the properties file, or the
            running dev broker.
        models: Names (`fraud`, `fraud@3`) to be loaded from the start; others are loaded when first named.
        prefix: The repository's topic prefix.
        properties: librdkafka properties.
        properties_file: A file of them.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        cache_dir: Where model files are kept; the user's cache folder by default.
        stores: URLs of the object stores and folders that versions by reference may be read from, with everything
            below; by default `MODELCAST_STORES`.
        state_dir: Where release marks and memories of crashes are kept; the user's state folder by default.
        trust_policy: Which keys may sign for which models (docs/TRUST.md); by default `MODELCAST_TRUST_POLICY`. Without
            one, every version counts.
        instance: What this client is called on the status topic.
        timeout_s: How long `client[name]` waits for a model that is on its way.
        connection: In the place of everything about Kafka above.

    Raises:
        MissingExtraError: No ONNX Runtime is installed.
        ConfigError: A setting or the trust policy is wrong.
        BrokerError: No broker is named anywhere.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        *,
        models: Iterable[str] | None = None,
        prefix: str | None = None,
        properties: Mapping[str, str] | None = None,
        properties_file: Path | None = None,
        device: str = "auto",
        cache_dir: Path | None = None,
        stores: Iterable[str] | None = None,
        state_dir: Path | None = None,
        trust_policy: Path | str | None = None,
        instance: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connection: _Connects | None = None,
    ) -> None:
        refs = [ModelRef.parse(name) for name in models or ()]
        allowed = Stores.resolve(stores)
        versions = runtime.versions()
        runtime.check_device(device)
        state_dir = state_dir or folders.state_folder()
        trust = watch_policy(trust_policy, state_dir)
        self._connection = connection or Connection.resolve(
            bootstrap_servers, properties_file=properties_file, properties=properties, prefix=prefix
        )
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._models: dict[ModelRef, Model] = {}
        self._closed = False
        self._log = self._connection.open_log()
        self._loader = Loader(
            self._log,
            self._connection.topics,
            cache_dir=cache_dir,
            stores=allowed,
            state_dir=state_dir,
            device=device,
        )
        self._plane = ControlPlane(
            self._log,
            self._connection.topics,
            self._loader,
            refs=refs,
            state_dir=state_dir,
            role="client",
            instance=instance or f"client-{socket.gethostname()}-{self._pid}-{next(_NUMBERS)}",
            device=device,
            runtime=versions,
            trust=trust,
        ).start()

    def __getitem__(self, name: str) -> Model:
        """The model `NAME`, always in its live version, or `NAME@VERSION`; waits until it is loaded.

        Raises:
            UsageError: That is no model name, or this client is closed or of another process.
            NotFoundError: No such model or version, or nothing was released.
            LoadError: Every candidate was refused, or loading takes longer than `timeout_s`.
            BrokerError: The registry could not be read.
        """
        model = self.model(name)
        if model.version is None:
            self._open_plane().wait_live(model.ref, self._timeout_s, patient=False)
        return model

    def model(self, name: str) -> Model:
        """As `client[name]`, without waiting: `wait_live` on it waits for what is yet to be published."""
        ref = ModelRef.parse(name)
        with self._lock:
            if ref not in self._models:
                self._models[ref] = Model(self, ref, self._open_plane().subscribe(ref))
            return self._models[ref]

    def wait_live(self, names: Sequence[str], timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Waits until every model named is live, also for those not published yet; raises as `client[name]`."""
        deadline = time.monotonic() + timeout_s
        for name in names:
            self.model(name).wait_live(max(0.0, deadline - time.monotonic()))

    @property
    def stale_s(self) -> float:
        """Seconds since the registry could last be followed; 0 while it is."""
        return self._open_plane().stale_s

    @property
    def status(self) -> InstanceStatus:
        """What this client tells the status topic."""
        return self._open_plane().status_snapshot()

    def close(self) -> None:
        """Stops following and frees the models; predictions under way end first. Doing it again does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._plane.close()
        self._loader.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise UsageError("this ModelClient is closed", hint="Make a new one.")
        if os.getpid() != self._pid:
            raise UsageError(
                f"this ModelClient was made in process {self._pid}, and process {os.getpid()} is a fork of it",
                hint="Make a ModelClient in each process, after the fork.",
            )

    def _open_plane(self) -> ControlPlane:
        self._check_usable()
        return self._plane
