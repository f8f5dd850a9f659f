"""`ModelClient`: published models inside an application, always in the version that is live.

- A model is subscribed to when it is first named, or matches a pattern, and kept up to date from then on.
- `predict` takes a lease on the live version: a swap never interrupts it, nor waits for it.
- Kafka may go away: what is live goes on predicting, and `stale_s` says for how long it heard nothing.
- One client a process: after a fork every call says so, since threads and connections stay behind.
- What waits or computes has a twin for event loops; callbacks run on a thread of their own.

    with ModelClient("localhost:9092") as models:
        scores = models["fraud"].predict({"amount": [12.5, 80.0], "country": ["de", "fr"]})
        scores["score"], scores.version
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from modelcast import folders, runtime
from modelcast.config import Connection
from modelcast.errors import ModelNotFoundError, UsageError
from modelcast.files.store_url import Stores
from modelcast.log import Log
from modelcast.names import ModelRef
from modelcast.records import InstanceStatus, Refusal
from modelcast.topics import Topics
from modelcast.trust.watch import watch_policy

from .aside import Aside
from .budget import IDLE_S
from .control import ControlPlane
from .freshness import Freshness
from .hooks import Hooks
from .life import Life
from .line import Swapped
from .loader import Loader
from .model import DEFAULT_TIMEOUT_S, Host, Model, Prediction
from .patterns import check_pattern, is_pattern
from .policy import Preserve
from .snapshot import SnapshotStore

__all__ = ["DEFAULT_TIMEOUT_S", "Model", "ModelClient", "Prediction"]

_NUMBERS: Final = itertools.count()


class _Connects(Protocol):
    @property
    def topics(self) -> Topics: ...

    def open_log(self) -> Log: ...


class ModelClient:
    """Predicts with published models in process. Use as a context manager, `with` or `async with`; thread-safe.

    Args:
        bootstrap_servers: `host:port[,…]`; by default `MODELCAST_BOOTSTRAP_SERVERS`, the properties file, or the
            running dev broker.
        models: Names (`fraud`), pins (`fraud@3`) and patterns (`fraud-*`) to be loaded from the start; others are
            loaded when first named. A pattern also means models that are released later.
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
        timeout_s: How long `client[name]` waits for a model that is on its way, and `predict` for one that was
            unloaded to make room.
        preserve: What a swap keeps at all cost: `availability` (the new version is loaded beside the old one), or
            `resources` (the old one is unloaded first, and predictions wait for the new one, up to `timeout_s`).
        keep: Versions kept loaded behind each live one, for a rollback that takes no time: 1 or 0. None where resources
            are preserved.
        memory_budget_bytes: What all models together may take; None for no limit. What does not fit makes room by
            unloading what is kept, then models that nobody used for `idle_s`; those are loaded again when asked for.
        idle_s: See `memory_budget_bytes`.
        max_stale_s: For how long the registry may be out of reach; None for as long as it takes.
        when_stale: What happens then: `keep` what is live and say so, or `stop` predicting until it is followed again.
        connection: In the place of everything about Kafka above.

    Raises:
        MissingExtraError: No ONNX Runtime is installed.
        ConfigError: A setting or the trust policy is wrong.
        UsageError: A name, pattern or limit is none.
        BrokerError: No broker is named anywhere.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        *,
        models: Iterable[str] | None = None,
        prefix: str | None = None,
        properties: Mapping[str, str] | None = None,
        properties_file: Path | str | None = None,
        device: str = "auto",
        cache_dir: Path | str | None = None,
        stores: Iterable[str] | None = None,
        state_dir: Path | str | None = None,
        trust_policy: Path | str | None = None,
        instance: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        preserve: str = Preserve.AVAILABILITY,
        keep: int = 1,
        memory_budget_bytes: int | None = None,
        idle_s: float = IDLE_S,
        max_stale_s: float | None = None,
        when_stale: str = "keep",
        connection: _Connects | None = None,
    ) -> None:
        names = (models,) if isinstance(models, str) else tuple(models or ())
        patterns = [check_pattern(name) for name in names if is_pattern(name)]
        refs = [ModelRef.parse(name) for name in names if not is_pattern(name)]
        _check_limits(keep, memory_budget_bytes, idle_s)
        preserved = Preserve.of(preserve)
        freshness = Freshness.of(max_stale_s, when_stale)
        allowed = Stores.resolve(stores)
        versions = runtime.versions()
        runtime.check_device(device)
        cache = None if cache_dir is None else Path(cache_dir)
        state = Path(state_dir) if state_dir else folders.state_folder()
        trust = watch_policy(trust_policy, state)
        self._connection = connection or Connection.resolve(
            bootstrap_servers, properties_file=properties_file, properties=properties, prefix=prefix
        )
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._models: dict[ModelRef, Model] = {}
        # To be followed also while there is nothing of that name.
        self._lasting = set(refs)
        self._life = Life(self)
        self._hooks = Hooks()
        self._aside = Aside()
        self._log = self._connection.open_log()
        self._loader = Loader(
            self._log,
            self._connection.topics,
            cache_dir=cache,
            stores=allowed,
            state_dir=state,
            device=device,
        )
        self._plane = ControlPlane(
            self._log,
            self._connection.topics,
            self._loader,
            refs=refs,
            state_dir=state,
            role="client",
            instance=instance or f"client-{socket.gethostname()}-{os.getpid()}-{next(_NUMBERS)}",
            device=device,
            runtime=versions,
            preserve=preserved,
            keep=keep,
            memory_budget_bytes=memory_budget_bytes,
            idle_s=idle_s,
            freshness=freshness,
            snapshots=SnapshotStore.of(self._connection, cache) if isinstance(self._connection, Connection) else None,
            trust=trust,
        )
        for pattern in patterns:
            self._plane.follow(pattern)
        self._plane.on_swap(self._hooks.swapped)
        self._plane.on_refused(self._hooks.refused)
        self._host = Host(self._plane, self._life, self._hooks, self._aside, timeout_s)
        self._plane.start()

    def __getitem__(self, name: str) -> Model:
        """The model `NAME`, always in its live version, or `NAME@VERSION`; waits until it is loaded.

        Raises:
            UsageError: That is no model name, or this client is closed or of another process.
            NotFoundError: No such model or version, or nothing was released.
            LoadError: Every candidate was refused, or loading takes longer than `timeout_s`.
            BrokerError: The registry could not be read.
        """
        model = self._subscribed(name)
        if model.version is None:
            try:
                self._plane.wait_live(model.ref, self._timeout_s, patient=False)
            except ModelNotFoundError:
                self._forget(model.ref)
                raise
        return model

    async def get(self, name: str) -> Model:
        """As `client[name]`, for event loops."""
        model = self._subscribed(name)
        try:
            return await model.wait_live_async(self._timeout_s, patient=False)
        except ModelNotFoundError:
            self._forget(model.ref)
            raise

    def model(self, name: str) -> Model:
        """As `client[name]`, without waiting: `wait_live` on it waits for what is yet to be published."""
        model = self._subscribed(name)
        self._lasting.add(model.ref)
        return model

    def _subscribed(self, name: str) -> Model:
        self._life.check()
        if is_pattern(name):
            raise UsageError(
                f"{name!r} is a pattern, not one model", hint="Use follow(…): models holds all that match so far."
            )
        ref = ModelRef.parse(name)
        with self._lock:
            if ref not in self._models:
                self._models[ref] = Model(self._host, ref, self._plane.subscribe(ref))
            return self._models[ref]

    def _forget(self, ref: ModelRef) -> None:
        """Lets go of a name that nobody published: whoever asks for what users type must not collect their typos."""
        with self._lock, suppress(ModelNotFoundError):
            if ref not in self._lasting:
                self._plane.unsubscribe(ref, for_good=False)
                self._models.pop(ref, None)

    def _known(self, ref: ModelRef) -> Model:
        """A model that is subscribed to; raises ModelNotFoundError if it is not."""
        with self._lock:
            if ref not in self._models:
                self._models[ref] = Model(self._host, ref, self._plane.slot(ref))
            return self._models[ref]

    @property
    def models(self) -> Mapping[str, Model]:
        """All that is subscribed to now, by name: what was named, and what patterns brought. Never waits."""
        self._life.check()
        return _Models(self._plane.refs, self._known)

    def follow(self, pattern: str) -> None:
        """Subscribes to all models whose name matches (`fraud-*`), now and as they are released. Raises UsageError."""
        self._life.check()
        self._plane.follow(pattern)

    def unsubscribe(self, name: str) -> None:
        """Lets go of a model, also of one a pattern brought, until it is named again.

        Raises:
            ModelNotFoundError: It is not subscribed to.
        """
        self._life.check()
        ref = ModelRef.parse(name)
        with self._lock:
            self._plane.unsubscribe(ref)
            self._models.pop(ref, None)
            self._lasting.discard(ref)

    def wait_live(self, names: Sequence[str] | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Waits until every model is live, also one not published yet; raises as `client[name]`.

        Args:
            names: All that is subscribed to by now, if None.
        """
        deadline = time.monotonic() + timeout_s
        for name in self.models if names is None else names:
            self.model(name).wait_live(max(0.0, deadline - time.monotonic()))

    async def wait_live_async(self, names: Sequence[str] | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """As `wait_live`, for event loops."""
        deadline = time.monotonic() + timeout_s
        for name in self.models if names is None else names:
            await self.model(name).wait_live_async(max(0.0, deadline - time.monotonic()))

    def on_swap(self, callback: Callable[[Swapped], None]) -> None:
        """Calls back after each version of any model that goes live, on a thread for callbacks."""
        self._life.check()
        self._hooks.on_swap(callback)

    def on_refused(self, callback: Callable[[ModelRef, Refusal], None]) -> None:
        """Calls back after each version of any model that is refused, on a thread for callbacks."""
        self._life.check()
        self._hooks.on_refused(callback)

    @property
    def stale_s(self) -> float:
        """Seconds since the registry could last be followed; 0 while it is."""
        self._life.check()
        return self._plane.stale_s

    @property
    def is_stale(self) -> bool:
        """Whether the registry can't be followed: what is live may not be the newest."""
        return self.stale_s > 0

    @property
    def status(self) -> InstanceStatus:
        """What this client tells the status topic: its models with their versions, rates and refusals."""
        self._life.check()
        return self._plane.status_snapshot()

    def close(self) -> None:
        """Stops following and frees the models; predictions under way end first. Doing it again does nothing."""
        if not self._life.end():
            return
        self._aside.close()
        self._plane.close()
        self._loader.close()
        self._log.close()
        self._hooks.close()

    async def aclose(self) -> None:
        """As `close`, for event loops."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        self._life.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._life.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Models(Mapping[str, Model]):
    """What a client is subscribed to, as it is when it is looked at."""

    def __init__(self, refs: Callable[[], Sequence[ModelRef]], known: Callable[[ModelRef], Model]) -> None:
        self._refs = refs
        self._known = known

    def __getitem__(self, name: str) -> Model:
        try:
            return self._known(ModelRef.parse(name))
        except (UsageError, ModelNotFoundError):
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(str(ref) for ref in self._refs()))

    def __len__(self) -> int:
        return len(self._refs())

    def __repr__(self) -> str:
        return repr(list(self.values()))


def _check_limits(keep: int, memory_budget_bytes: int | None, idle_s: float) -> None:
    if keep not in {0, 1}:
        raise UsageError(f"keep can't be {keep!r}", hint="Keep 1 version for rollbacks, or 0.")
    if memory_budget_bytes is not None and not (isinstance(memory_budget_bytes, int) and memory_budget_bytes > 0):
        raise UsageError(
            f"a memory budget of {memory_budget_bytes!r} bytes holds no model",
            hint="Give whole bytes (4 << 30), or leave it out for no limit.",
        )
    if not idle_s >= 0:
        raise UsageError(f"idle_s can't be {idle_s:g}", hint="Give seconds, 0 or more.")
