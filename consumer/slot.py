"""The place of a live servable: swapped atomically, used under leases, emptied only after the last of them.

Rules:
- At most one servable is live. A lease sees exactly one servable and keeps it usable until it ends.
- `swap` changes pointers under one short lock. It never waits for leases, and a lease waits for nothing at all.
- The servable replaced is *kept*: still loaded, so that going back is another `swap`. What that pushes out is
  *quiescing* until its leases end, and then waits in a queue for `reap`.
- Only `reap` destroys, and only the control thread calls it: ending a lease costs the scoring thread no destructor.
- What each version is doing is in one ledger (`lifecycle`); an illegal move raises and changes nothing.

    with slot.lease() as servable:
        outputs = servable.run(columns)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from modelcast.errors import ModelNotFoundError

from .lifecycle import IllegalTransitionError, Ledger, State, VersionKey

if TYPE_CHECKING:
    from .servable import Servable


class _Tenant:
    """A servable in a slot.

    Attributes:
        leases: One entry for each lease; appending and taking off are atomic, unlike counting.
        leaving: Whether it is to be destroyed once nobody leases it.
    """

    __slots__ = ("key", "leases", "leaving", "servable")

    def __init__(self, servable: Servable, key: VersionKey) -> None:
        self.servable = servable
        self.key = key
        self.leases: list[None] = []
        self.leaving = False

    @property
    def size_bytes(self) -> int:
        return self.servable.memory_bytes


class Lease:
    """The right to use the live servable until the `with` block ends; single use.

    Taken without a lock: whoever scores is never held up by another thread, and pays a third. First the lease is noted,
    then the tenant looked at again. If it is still the live one, then whoever replaces it looks for leases later, and
    finds this one; if not, it may be destroyed already, and the next is tried.
    """

    __slots__ = ("_slot", "_tenant")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._tenant: _Tenant | None = None

    def __enter__(self) -> Servable:
        slot = self._slot
        while (tenant := slot._live) is not None:
            tenant.leases.append(None)
            if tenant is slot._live:
                self._tenant = tenant
                slot.uses += 1
                return tenant.servable
            slot._give_back(tenant)
        raise ModelNotFoundError(f"no version of {slot._name!r} is live yet")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tenant, self._tenant = self._tenant, None
        if tenant is not None:
            self._slot._give_back(tenant)


class Slot:
    """The live servable of one model reference; thread-safe.

    Args:
        name: What users call it, for messages.
        keep: Servables kept loaded behind the live one: 1, or 0 where memory is short.
        on_reapable: Called, on whichever thread, when `reap` may have something to do.

    Attributes:
        uses: Grows with the leases taken. Threads that take one at the same moment may count as one: that it changed
            says that the slot is in use, and nothing more.
    """

    def __init__(self, name: str, *, keep: int = 1, on_reapable: Callable[[], None] = lambda: None) -> None:
        if keep not in (0, 1):
            raise ValueError(f"keep={keep}: a slot keeps no servable or one")
        self._name = name
        self._keep = keep
        self._on_reapable = on_reapable
        self._changed = threading.Condition(threading.Lock())
        self._ledger = Ledger()
        self._live: _Tenant | None = None
        self._kept: _Tenant | None = None
        self._leaving: list[_Tenant] = []
        self._generation = 0
        self.uses = 0

    @property
    def live(self) -> Servable | None:
        """The live servable. Without a lease it may be destroyed at any time: for what does not run it only."""
        tenant = self._live
        return None if tenant is None else tenant.servable

    def loaded(self) -> Mapping[VersionKey, Servable]:
        """What could be live at once: the kept servable, and those quiescing that are not destroyed yet."""
        with self._changed:
            tenants = [*self._leaving, *([self._kept] if self._kept is not None else [])]
            return {tenant.key: tenant.servable for tenant in tenants}

    @property
    def live_key(self) -> VersionKey | None:
        tenant = self._live
        return None if tenant is None else tenant.key

    @property
    def kept_key(self) -> VersionKey | None:
        tenant = self._kept
        return None if tenant is None else tenant.key

    @property
    def generation(self) -> int:
        """How often the live servable changed; two equal readings mean that it did not."""
        return self._generation

    def lease(self) -> Lease:
        """A context manager giving the live servable.

        Raises:
            ModelNotFoundError: On entering, if nothing is live.
        """
        return Lease(self)

    def wait_live(self, timeout_s: float) -> bool:
        """Waits until a servable is live; False if none was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._live is not None, timeout_s)

    def state(self, key: VersionKey) -> State | None:
        with self._changed:
            return self._ledger.state(key)

    def states(self) -> Mapping[VersionKey, State]:
        """What every version of this slot is doing."""
        with self._changed:
            return self._ledger.snapshot()

    def move(self, key: VersionKey, to: State) -> None:
        """Notes a move of a version that is not in the slot; raises IllegalTransitionError."""
        with self._changed:
            self._ledger.move(key, to)

    def swap(self, new: Servable) -> Servable | None:
        """Makes a servable live that is ready, or one of `loaded`.

        Returns:
            The servable it replaced, which is kept or quiescing now.

        Raises:
            IllegalTransitionError: The version is neither; nothing changed.
        """
        with self._changed:
            known = self._take(new)
            if known is not None:
                return self._put(known)
            tenant = _Tenant(new, VersionKey.of(new))
            if self._ledger.state(tenant.key) in (None, State.UNLOADED):
                self._ledger.move(tenant.key, State.READY)
            if self._ledger.state(tenant.key) is not State.READY:
                raise IllegalTransitionError(f"{tenant.key} is {self._ledger.state(tenant.key)}, not ready")
            return self._put(tenant)

    def discard(self, servable: Servable) -> None:
        """Lets go of a ready servable that will not be live; raises IllegalTransitionError if it is not ready."""
        with self._changed:
            tenant = _Tenant(servable, VersionKey.of(servable))
            if self._ledger.state(tenant.key) is not State.READY:
                raise IllegalTransitionError(f"{tenant.key} is {self._ledger.state(tenant.key)}, not ready")
            self._leave(tenant)

    def drop_kept(self) -> bool:
        """Lets go of the kept servable; False if there was none."""
        with self._changed:
            tenant, self._kept = self._kept, None
            if tenant is not None:
                self._leave(tenant)
            return tenant is not None

    def clear(self) -> None:
        """Lets go of everything; what is leased stays usable until its leases end."""
        with self._changed:
            leaving = [tenant for tenant in (self._live, self._kept) if tenant is not None]
            if self._live is not None:
                self._generation += 1
            self._live = self._kept = None
            for tenant in leaving:
                self._leave(tenant)
            self._changed.notify_all()

    @property
    def is_leased(self) -> bool:
        """Whether anything in this slot is leased at this moment."""
        with self._changed:
            return any(tenant.leases for tenant in (self._live, self._kept, *self._leaving) if tenant is not None)

    def may_reap(self, above_bytes: int) -> bool:
        """Whether `reap` would destroy something larger than this."""
        if not self._leaving:  # so it is mostly; whoever adds to it says so afterwards
            return False
        with self._changed:
            return any(not tenant.leases and tenant.size_bytes > above_bytes for tenant in self._leaving)

    def reap(self, most_bytes: int | None = None) -> int:
        """Destroys what nobody leases any more; for the control thread only.

        Args:
            most_bytes: What takes more memory stays for another time; None for all.

        Returns:
            How many were destroyed.

        Raises:
            ExceptionGroup: Destructors that failed, after all of them were called.
        """
        if not self._leaving:  # as above
            return 0
        with self._changed:
            ready: list[_Tenant] = []
            leaving: list[_Tenant] = []
            for tenant in self._leaving:  # each is asked once: leases come and go without the lock
                stays = tenant.leases or (most_bytes is not None and tenant.size_bytes > most_bytes)
                (leaving if stays else ready).append(tenant)
            self._leaving = leaving
        failures = []
        for tenant in ready:
            try:
                tenant.servable.close()
            except Exception as error:  # foreign code; the others must still be destroyed
                failures.append(error)
            with self._changed:
                self._ledger.move(tenant.key, State.UNLOADED)
        if failures:
            raise ExceptionGroup(f"servables of {self._name!r} could not be destroyed", failures)
        return len(ready)

    @property
    def quiescing(self) -> int:
        """Servables that are not destroyed yet, though neither live nor kept."""
        with self._changed:
            return len(self._leaving)

    def _put(self, tenant: _Tenant) -> Servable | None:
        old, self._live = self._live, tenant
        self._ledger.move(tenant.key, State.LIVE)
        self._generation += 1
        self._changed.notify_all()
        if old is None:
            return None
        if not self._keep:
            self._leave(old)
            return old.servable
        pushed_out, self._kept = self._kept, old
        self._ledger.move(old.key, State.KEPT)
        if pushed_out is not None:
            self._leave(pushed_out)
        return old.servable

    def _take(self, servable: Servable) -> _Tenant | None:
        """The tenant of a servable that is loaded but not live, removed from where it was."""
        if self._kept is not None and self._kept.servable is servable:
            tenant, self._kept = self._kept, None
            return tenant
        for index, tenant in enumerate(self._leaving):
            if tenant.servable is servable:
                del self._leaving[index]
                tenant.leaving = False
                return tenant
        return None

    def _leave(self, tenant: _Tenant) -> None:
        self._ledger.move(tenant.key, State.QUIESCING)
        tenant.leaving = True
        self._leaving.append(tenant)
        if not tenant.leases:
            self._on_reapable()

    def _give_back(self, tenant: _Tenant) -> None:
        tenant.leases.pop()
        # Whoever sets `leaving` looks for leases afterwards: the last of both to look sees the other.
        if tenant.leaving and not tenant.leases:
            self._on_reapable()
