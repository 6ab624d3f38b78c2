"""The blocking client of a gateway: what `Client` can do, for programs without an event loop.

with SyncClient("127.0.0.1:7100") as client:
    for event in client.generate("def add(", max_tokens=64, temperature=0):
        print(event.delta.text, end="")
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

from paceline.calls import Metadata
from paceline.client import Client
from paceline.tls import Tls

P = ParamSpec("P")
T = TypeVar("T")
_Readings: TypeAlias = set[asyncio.Task[Any]]


def _blocking(
    call: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[SyncClient, P], T]":
    """The method of `Client`, which returns once it is done."""

    @functools.wraps(call)
    def method(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(self._client, *args, **kwargs))

    return method


def _streaming(
    call: Callable[Concatenate[Client, P], AsyncGenerator[T, None]],
) -> "Callable[Concatenate[SyncClient, P], Generator[T, None, None]]":
    """The method of `Client`, whose events are iterated by this thread."""

    @functools.wraps(call)
    def method(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return self._iterate(call(self._client, *args, **kwargs))

    return method


class _ClosedError(RuntimeError):
    """The client is closed, or was while it worked."""


class SyncClient:
    """Blocking client. Its calls are those of `Client`, on an event loop in a thread of its own.

    Several threads may use one client, each stream by one thread at a time.
    """

    def __init__(
        self, address: str | Sequence[str], metadata: Metadata = (), *, key: str | None = None, tls: Tls | None = None
    ) -> None:
        """See Client, of which this is one; ValueError is raised alike."""
        self._lock = threading.Lock()
        self._is_closing = False
        """Set before the loop ends: what is submitted under the lock before is still run, and nothing after."""
        self._closings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="paceline-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_connect(address, metadata, key, tls))
        except BaseException:
            self._end_loop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and with it what is still running."""
        with self._lock:
            is_first, self._is_closing = not self._is_closing, True
        if is_first:
            asyncio.run_coroutine_threadsafe(_finish(self._client), self._loop).result()
            self._end_loop()
        self._thread.join()

    generate = _streaming(Client.generate)
    chat = _streaming(Client.chat)
    list_models = _blocking(Client.list_models)
    get_speculation = _blocking(Client.get_speculation)
    get_status = _blocking(Client.get_status)
    tokenize = _blocking(Client.tokenize)
    detokenize = _blocking(Client.detokenize)
    upload_adapter = _blocking(Client.upload_adapter)
    get_adapter = _blocking(Client.get_adapter)
    list_adapters = _blocking(Client.list_adapters)
    delete_adapter = _blocking(Client.delete_adapter)
    cache_statistics = _blocking(Client.cache_statistics)
    clear_cache = _blocking(Client.clear_cache)
    usage = _blocking(Client.usage)
    create_batch = _blocking(Client.create_batch)
    get_batch = _blocking(Client.get_batch)
    list_batches = _blocking(Client.list_batches)
    cancel_batch = _blocking(Client.cancel_batch)
    pause_batch = _blocking(Client.pause_batch)
    resume_batch = _blocking(Client.resume_batch)
    retry_batch = _blocking(Client.retry_batch)
    delete_batch = _blocking(Client.delete_batch)
    batch_results = _streaming(Client.batch_results)
    create_webhook = _blocking(Client.create_webhook)
    list_webhooks = _blocking(Client.list_webhooks)
    rotate_webhook = _blocking(Client.rotate_webhook)
    delete_webhook = _blocking(Client.delete_webhook)
    create_tenant = _blocking(Client.create_tenant)
    update_tenant = _blocking(Client.update_tenant)
    list_tenants = _blocking(Client.list_tenants)
    create_key = _blocking(Client.create_key)
    rotate_key = _blocking(Client.rotate_key)
    revoke_key = _blocking(Client.revoke_key)
    list_keys = _blocking(Client.list_keys)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for a call; whoever interrupts the waiting, with Ctrl-C say, ends the call."""
        with self._lock:
            if self._is_closing:
                call.close()
                raise _ClosedError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise _ClosedError("the client was closed meanwhile") from None
        finally:
            future.cancel()

    def _iterate(self, events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        readings: _Readings = set()
        try:
            while True:
                try:
                    event = self._run(_next(events, readings))
                except StopAsyncIteration:
                    return
                yield event
        finally:
            if threading.current_thread() is self._thread:
                # The garbage collector came by here; waiting for the loop on its own thread would never end.
                closing = self._loop.create_task(_close(events, readings))
                self._closings.add(closing)
                closing.add_done_callback(self._closings.discard)
            else:
                with contextlib.suppress(_ClosedError):  # Closing the client ends its streams.
                    self._run(_close(events, readings))


async def _connect(address: str | Sequence[str], metadata: Metadata, key: str | None, tls: Tls | None) -> Client:
    return Client(address, metadata, key=key, tls=tls)


async def _finish(client: Client) -> None:
    """Ends the connection and waits for what other threads have running."""
    await client.close()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


async def _next(events: AsyncGenerator[T, None], readings: _Readings) -> T:
    """The next event. Whoever reads it is among the readings meanwhile."""
    if reading := asyncio.current_task():
        readings.add(reading)
        reading.add_done_callback(readings.discard)
    return await anext(events)


async def _close(events: AsyncGenerator[Any, None], readings: _Readings) -> None:
    """Closes a stream, which cannot be done while it is read: a reading that was interrupted ends first."""
    for reading in readings:
        if not reading.cancelling():  # Once is enough: what ends must not be kept from ending its call.
            reading.cancel()
    await asyncio.gather(*readings, return_exceptions=True)
    await events.aclose()
