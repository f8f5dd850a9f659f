"""One model of a `ModelClient`, in whichever version is live, and what it predicts.

- A prediction takes a lease: one version makes the whole of it, however many are swapped meanwhile.
- A model that was unloaded to make room is loaded again when it is asked for; the caller waits for that.
- What waits or computes has a twin for event loops, named `…_async`: none of them blocks the loop.

    fraud = models["fraud"]
    fraud.predict({"amount": [12.5, 80.0], "country": ["de", "fr"]})["score"]
    fraud.run({"x": np.ones((2, 30), np.float32)})["score"]
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from modelcast.errors import LoadError, ModelNotFoundError
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Refusal, Signature
from modelcast.runtime import Array

from .aside import Aside, Pace
from .rows import Rows, check_feeds, columns_of, count_of
from .waiting import refusal_words

if TYPE_CHECKING:
    from .control import ControlPlane
    from .freshness import Stale
    from .hooks import Hooks
    from .life import Life
    from .line import Swapped
    from .servable import Servable
    from .slot import Slot

# A large model on a slow disk or network; an application that starts can't do without its model anyway.
DEFAULT_TIMEOUT_S: Final = 60.0
# How often a coroutine looks whether a model is live: a hundredth of what a small model's load takes.
_LOOK_S: Final = 0.005
# A model that is asked for and unloaded again before it could answer, this many times: memory is too short for it.
_MAX_ROUSINGS: Final = 3


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


@dataclass(frozen=True, slots=True)
class Host:
    """What the models of one client share.

    Attributes:
        timeout_s: How long a prediction waits for a model that was unloaded.
    """

    plane: ControlPlane
    life: Life
    hooks: Hooks
    aside: Aside
    timeout_s: float


class Model:
    """One model, or one pinned version; made by `ModelClient`. Thread-safe."""

    def __init__(self, host: Host, ref: ModelRef, slot: Slot) -> None:
        self._host = host
        self._life = host.life
        self.ref = ref
        self._slot = slot
        self._pace = Pace()

    @property
    def name(self) -> str:
        """What it is called: `NAME`, or `NAME@VERSION`."""
        return str(self.ref)

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
        self._life.check()
        return self._host.plane.refusals(self.ref)

    @property
    def stale(self) -> Stale | None:
        """Why what is known of this model is older than it may be (`max_stale_s`, or the trust policy's `max_age`).

        None while it is not. Nothing is live where `stop` is true.
        """
        self._life.check()
        return self._host.plane.stale(self.ref)

    @property
    def is_idle(self) -> bool:
        """Whether it was unloaded, or never loaded, for want of memory: it is loaded when it is asked for."""
        self._life.check()
        return self._host.plane.is_idle(self.ref)

    def predict(self, rows: Rows) -> Prediction:
        """Runs the live version on rows.

        Args:
            rows: Values by event field (arrays, lists, scalars), a list of records, a Polars or pandas frame, or a
                table of any library that streams Arrow data. Fields the model does not take are ignored.

        Returns:
            Arrays by output name, N rows each, and the version.

        Raises:
            BindingError: A field is missing, null or of the wrong kind.
            ModelNotFoundError: No version is live (yet).
            LoadError: The model failed on these rows; or no version could go live, and why.
            UsageError: The client is closed, or another process's.
        """
        if not self._life.usable:
            raise self._life.fault()
        try:
            with self._slot.lease() as servable:
                return Prediction(servable.id, servable.run(columns_of(rows, servable.binding.specs)))
        except ModelNotFoundError:
            return self._roused(lambda servable: servable.run(columns_of(rows, servable.binding.specs)))

    def run(self, feeds: Mapping[str, Array]) -> Prediction:
        """Runs the live version on its graph's own inputs: a few microseconds more than the session alone.

        Args:
            feeds: By input name (`signature.inputs`), arrays of the input's type and shape, the batch first. A string
                is an object.

        Returns:
            As `predict`.

        Raises:
            BindingError: An input is missing, or of the wrong type or shape.
            ModelNotFoundError: As `predict`; so are LoadError and UsageError.
        """
        if not self._life.usable:
            raise self._life.fault()
        try:
            with self._slot.lease() as servable:
                return Prediction(servable.id, _fed(servable, feeds))
        except ModelNotFoundError:
            return self._roused(lambda servable: _fed(servable, feeds))

    async def predict_async(self, rows: Rows) -> Prediction:
        """As `predict`, for event loops; cancelling it returns at once.

        Runs on a thread of the client's, or at once on the loop where batches of about this size were seen to take
        less than the way to a thread and back (`aside.INLINE_S`).
        """
        return await self._beside(lambda: self.predict(rows), count_of(rows))

    async def run_async(self, feeds: Mapping[str, Array]) -> Prediction:
        """As `run`, for event loops; see `predict_async`."""
        return await self._beside(lambda: self.run(feeds), count_of(feeds))

    def wait_live(self, timeout_s: float = DEFAULT_TIMEOUT_S, *, patient: bool = True) -> Self:
        """Waits until a version is live; raises as `ModelClient[...]`.

        Args:
            timeout_s: For how long.
            patient: Wait for one that is not published yet, too; else give up once waiting alone can't help.
        """
        self._life.check()
        self._slot = self._host.plane.wait_live(self.ref, timeout_s, patient=patient)
        return self

    async def wait_live_async(self, timeout_s: float = DEFAULT_TIMEOUT_S, *, patient: bool = True) -> Self:
        """As `wait_live`, for event loops: by looking now and then, since a thread that waits can't be cancelled."""
        self._life.check()
        plane, deadline = self._host.plane, time.monotonic() + timeout_s
        self._find_slot()
        if not self._is_live():
            plane.wake(self.ref)
        while not self._is_live():
            over = time.monotonic() >= deadline or (not patient and plane.is_hopeless(self.ref))
            if over and not self._is_live():  # it may have become so meanwhile
                raise plane.absence(self.ref, timeout_s)
            await asyncio.sleep(_LOOK_S)
            self._life.check()
            if not self._is_live():
                plane.wake(self.ref)  # it may have been live meanwhile, and let go again
        return self

    def on_swap(self, callback: Callable[[Swapped], None]) -> None:
        """Calls back after each version that goes live, on a thread for callbacks."""
        self._life.check()
        self._host.hooks.on_swap(callback, ref=self.ref)

    def on_refused(self, callback: Callable[[Refusal], None]) -> None:
        """Calls back after each version that is refused, on a thread for callbacks."""
        self._life.check()
        self._host.hooks.on_refused(lambda _, refusal: callback(refusal), ref=self.ref)

    def _is_live(self) -> bool:
        return self._slot.live is not None

    def _find_slot(self) -> None:
        """Takes the slot there is now: where the model was unsubscribed and named again, another one."""
        self._slot = self._host.plane.slot(self.ref)

    def _roused(self, work: Callable[[Servable], Mapping[str, Array]]) -> Prediction:
        """Has the model loaded again if it was unloaded to make room, and runs it then."""
        self._find_slot()
        for _ in range(_MAX_ROUSINGS):
            if not self._is_live():
                self._check_to_come()
                self._host.plane.wait_live(self.ref, self._host.timeout_s, patient=False)
            try:
                with self._slot.lease() as servable:
                    return Prediction(servable.id, work(servable))
            except ModelNotFoundError:
                continue
        raise self._absence()

    def _check_to_come(self) -> None:
        """Raises what keeps the model from being live, unless it was unloaded to make room, be it for its successor."""
        plane = self._host.plane
        # In this order: a version that comes is live first, and not to come any more then.
        if not plane.is_idle(self.ref) and not plane.is_between(self.ref) and not self._is_live():
            raise self._absence()

    def _absence(self) -> ModelNotFoundError | LoadError:
        refusals = self._host.plane.refusals(self.ref)
        if not refusals:
            return ModelNotFoundError(f"no version of {self.name!r} is live yet", hint="Wait for one: wait_live(…)")
        return LoadError(f"no version of {self.name!r} is live: {refusal_words(refusals)}")

    async def _beside(self, work: Callable[[], Prediction], rows: int | None) -> Prediction:
        self._life.check()
        if not self._is_live():
            self._find_slot()
        if not self._is_live():
            self._check_to_come()
            await self.wait_live_async(self._host.timeout_s, patient=False)
        generation = self._slot.generation
        inline = self._pace.is_quick(generation, rows)

        def timed() -> Prediction:
            start = time.perf_counter()
            prediction = work()
            self._pace.note(generation, rows, time.perf_counter() - start, inline=inline)
            return prediction

        return timed() if inline else await self._host.aside.run(timed)

    def __repr__(self) -> str:
        return f"<Model {self.ref}, live version {self.version}>"


def _fed(servable: Servable, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """What a servable gives for its graph's inputs, or what is wrong with them: looked for only when it fails."""
    try:
        rows = [len(array) for array in feeds.values()]
        if rows and rows[0] and rows.count(rows[0]) == len(rows):
            return servable.run_feeds(feeds)
    except Exception:
        check_feeds(feeds, servable.manifest.signature)
        raise
    check_feeds(feeds, servable.manifest.signature)
    return servable.run_feeds(feeds)
