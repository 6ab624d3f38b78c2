"""Which adapters sit in an engine's slots, and who uses them: loaded on demand, kept while in use, let go by last use.

Everything here runs on the event loop. An adapter is put into its slot by a command to the engine's thread that comes
before the one that opens the sequence, and after the one that closed the last sequence of the slot's former adapter.
"""

import asyncio
import logging
import time
from collections import OrderedDict, abc
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.metrics import CallbackOptions, Observation

from paceline.errors import (
    InvalidArgumentError,
    NotFoundError,
    PacelineError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.adapter_store.client import AdapterStoreClient
from services.common.channel import open_channel
from services.common.identities import Identity
from services.common.lora.config import adapter_digest, check_digest
from services.common.telemetry import counter, meter
from services.common.tls_settings import tls_to
from services.engine.adapter import AdapterError
from services.engine.engine_loop import EngineLoop
from services.engine.sequence import NO_SLOT
from services.model_server.adapter_files import read_adapter
from services.model_server.settings import ModelServerSettings
from services.model_server.tenant import Tenant

_log = logging.getLogger(__name__)
_ATTEMPTS = 2
_RETRY_AFTER_SECONDS = 1.0
_MAX_FETCHES = 4


@dataclass(slots=True, eq=False)
class _Entry:
    """An adapter that is in a slot, or on its way there."""

    ready: "asyncio.Task[int]"
    """Its slot, once it is there."""
    slot: int = NO_SLOT
    num_uses: int = 0
    namespaces: set[str] = field(default_factory=set)
    """Those that the store lets fetch it."""


class AdapterSlots:
    """The slots of one engine."""

    def __init__(
        self, engine_loop: EngineLoop[Any], client: AdapterStoreClient, num_slots: int, max_seconds: float
    ) -> None:
        """A stream waits for its adapter, and for a slot, for at most `max_seconds`."""
        self._engine_loop = engine_loop
        self._client = client
        self._max_seconds = max_seconds
        self.num_slots = num_slots
        self._free = list(range(num_slots))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """Entries are found by digest; the longest unused comes first."""
        self._changed = asyncio.Condition()
        self._fetches = asyncio.Semaphore(_MAX_FETCHES)
        instruments = meter("paceline.adapters")
        self._num_loaded = counter(instruments, "paceline.adapter_loads", "{adapter}", "Adapters put into slots.")
        self._evicted = counter(instruments, "paceline.adapter_evictions", "{adapter}", "Adapters let go.")
        self._damaged = counter(instruments, "paceline.damaged_adapters", "{adapter}", "Not what was asked for.")
        self._seconds = instruments.create_histogram("paceline.adapter_load_duration", "s", "Time of loading one.")
        instruments.create_observable_gauge(
            "paceline.adapter_slots", [self._observe], "{slot}", "Slots of adapters by what is in them."
        )

    @classmethod
    def connect(cls, engine_loop: EngineLoop[Any], settings: ModelServerSettings) -> "AdapterSlots | None":
        """Makes slots for the adapter store that settings name; None without one."""
        if settings.adapter_store is None:
            return None
        tls = tls_to(Identity.ADAPTER_STORE, settings.channel_tls)
        client = AdapterStoreClient(settings.adapter_store, open_channel(settings.adapter_store, tls=tls))
        return cls(engine_loop, client, settings.num_adapter_slots, settings.adapter_seconds)

    @asynccontextmanager
    async def use(self, digest: str, tenant: Tenant) -> abc.AsyncIterator[int]:
        """The slot of an adapter, which stays there until the block ends.

        Raises InvalidArgumentError where nobody is named, NotFoundError when the tenant has no such adapter,
        UnavailableError when it could not be had in time, ResourceExhaustedError when all slots are in use.
        """
        check_digest("adapter_digest", digest)
        if not tenant.namespace:
            raise InvalidArgumentError("tenant.namespace", "must say whose adapter it is")
        entry = await self._entry(digest, tenant)
        entry.num_uses += 1
        try:
            yield await self._loaded_slot(entry)
        finally:
            entry.num_uses -= 1
            await self._left(digest, entry)

    async def load(self, digest: str, tenant: Tenant) -> None:
        """Has an adapter loaded that will be used soon. Raises as `use` does."""
        async with self.use(digest, tenant):
            pass

    def digests(self) -> abc.Mapping[str, int]:
        """The adapters that sit in slots, and in which. Any thread may ask."""
        return {digest: entry.slot for digest, entry in list(self._entries.items()) if entry.slot != NO_SLOT}

    def awaited(self) -> abc.Set[str]:
        """The adapters that are on their way, with sequences that wait for them. Any thread may ask."""
        return {digest for digest, entry in list(self._entries.items()) if entry.slot == NO_SLOT and entry.num_uses}

    async def close(self) -> None:
        """Ends what is being loaded."""
        for entry in self._entries.values():
            entry.ready.cancel()
        await self._client.close()

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        entries = list(self._entries.values())
        loaded = [entry for entry in entries if entry.slot != NO_SLOT]
        num_used = sum(1 for entry in loaded if entry.num_uses)
        return [
            Observation(num_used, {"state": "used"}),
            Observation(len(loaded) - num_used, {"state": "idle"}),
            Observation(self.num_slots - len(loaded), {"state": "free"}),
        ]

    async def _entry(self, digest: str, tenant: Tenant) -> _Entry:
        """The adapter's entry, once the store has said that the tenant may use it."""
        while (entry := self._entries.get(digest)) is not None:
            if tenant.namespace in entry.namespaces:
                self._entries.move_to_end(digest)
                return entry
            try:
                await self._client.check(tenant.token, tenant.namespace, digest, self._max_seconds)
            except grpc.aio.AioRpcError as error:
                raise _refusal(error, digest) from error
            # What another tenant may not fetch says nothing to this one.
            await asyncio.wait([entry.ready], timeout=self._max_seconds)
            entry.namespaces.add(tenant.namespace)
        entry = _Entry(asyncio.create_task(self._load(digest, tenant)), namespaces={tenant.namespace})
        entry.ready.add_done_callback(_seen)
        self._entries[digest] = entry
        return entry

    async def _loaded_slot(self, entry: _Entry) -> int:
        """The slot of an adapter, as soon as it is there. However long others have waited for it, this one may too."""
        try:
            async with asyncio.timeout(self._max_seconds):
                return await asyncio.shield(entry.ready)
        except TimeoutError as error:
            if not self._free and self._idle() is None:
                raise ResourceExhaustedError("all adapter slots are in use", _RETRY_AFTER_SECONDS) from error
            description = f"the adapter could not be loaded within {self._max_seconds:g} s"
            raise UnavailableError(description, _RETRY_AFTER_SECONDS) from error

    async def _left(self, digest: str, entry: _Entry) -> None:
        """One use less. What nobody waits for any more is not loaded."""
        if self._entries.get(digest) is entry:
            if entry.num_uses or entry.ready.done():
                self._entries.move_to_end(digest)
            else:
                del self._entries[digest]
                entry.ready.cancel()
        async with self._changed:
            self._changed.notify_all()

    async def _load(self, digest: str, tenant: Tenant) -> int:
        """Fetches an adapter and puts it into a slot."""
        started = time.monotonic()
        try:
            # What was fetched is in memory while it waits for a slot: only so many at once.
            async with self._fetches:
                packed = await self._fetch(digest, tenant)
                slot = await self._take_slot()
            try:
                await self._engine_loop.ask(lambda role: role.engine.install_adapter(slot, packed))
            except BaseException:
                self._free.append(slot)
                raise
        except Exception:
            del self._entries[digest]
            raise
        self._entries[digest].slot = slot
        self._num_loaded.add(1)
        self._seconds.record(time.monotonic() - started)
        return slot

    async def _fetch(self, digest: str, tenant: Tenant) -> Any:
        """The adapter as the engine takes it. One that is not as its digest says is fetched once more."""
        num_damaged = 0
        while num_damaged < _ATTEMPTS:
            try:
                config, weights = await self._client.fetch(tenant.token, tenant.namespace, digest, self._max_seconds)
                if await asyncio.to_thread(adapter_digest, config, weights) == digest:
                    return await asyncio.to_thread(self._read, config, weights)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    continue  # Somebody waits who came later; once nobody does, this task is cancelled.
                raise _refusal(error, digest) from error
            except UnavailableError as error:
                _log.error("adapter %s: %s", digest, error)
            num_damaged += 1
            self._damaged.add(1)
            _log.error("adapter %s came from %s with other content", digest, self._client.target)
        raise UnavailableError("the adapter store sent something else than the adapter", _RETRY_AFTER_SECONDS)

    def _read(self, config: bytes, weights: bytes) -> Any:
        try:
            return read_adapter(config, weights, self._engine_loop.facts)
        except (AdapterError, InvalidArgumentError) as error:
            raise InvalidArgumentError("adapter_digest", f"does not fit the model here: {error}") from error

    async def _take_slot(self) -> int:
        """A slot that nobody uses; waits for one."""
        async with self._changed:
            while not self._free:
                idle = self._idle()
                if idle is None:
                    await self._changed.wait()
                else:
                    self._free.append(self._entries.pop(idle).slot)
                    self._evicted.add(1)
            return self._free.pop()

    def _idle(self) -> str | None:
        """The adapter in a slot that nobody uses and that was not used for longest, or None."""
        loaded = ((digest, entry) for digest, entry in self._entries.items() if entry.slot != NO_SLOT)
        return next((digest for digest, entry in loaded if not entry.num_uses), None)


def _refusal(error: grpc.aio.AioRpcError, digest: str) -> PacelineError:
    """What a failed call to the store means for a stream."""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFoundError("adapter", digest)
    return UnavailableError(f"the adapter store failed ({error.code().name}: {error.details()})", _RETRY_AFTER_SECONDS)


def _seen(task: "asyncio.Task[int]") -> None:
    """Whoever awaits it gets its error; when nobody does, none is missed."""
    if not task.cancelled():
        task.exception()
