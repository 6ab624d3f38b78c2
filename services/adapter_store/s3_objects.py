"""Objects in S3-compatible storage, which may be shared by many stores.

Everything is put with one request, so that nothing is ever there in part; conditional requests (If-None-Match,
If-Match) decide races. What is put is in memory meanwhile: one large object at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from paceline.errors import UnavailableError
from services.adapter_store.objects import CHUNK_BYTES, Listed, Opened, Tagged
from services.adapter_store.settings import AdapterStoreSettings

_CONNECT_SECONDS = 5
_REQUEST_SECONDS = 300
_RETRIES_SECONDS = 15
_RETRY_AFTER_SECONDS = 1.0


class S3Objects:
    """See Objects. Tags are the storage's own."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._putting = asyncio.Lock()

    @classmethod
    def connect(cls, settings: AdapterStoreSettings) -> "S3Objects":
        """The storage that settings name. Nothing is asked yet."""
        given: dict[str, Any] = {
            "endpoint": settings.s3_endpoint and settings.s3_endpoint.get_secret_value(),
            "region": settings.s3_region,
            "access_key_id": settings.s3_access_key and settings.s3_access_key.get_secret_value(),
            "secret_access_key": settings.s3_secret_key and settings.s3_secret_key.get_secret_value(),
        }
        store = S3Store.from_url(
            settings.s3_url or "",
            client_options={
                "allow_http": settings.s3_allow_http,
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=_RETRIES_SECONDS)},
            **{name: value for name, value in given.items() if value is not None},
        )
        return cls(store)

    async def put(self, name: str, source: Path | bytes) -> None:
        """See Objects."""
        with _reached():
            async with self._putting:
                await obstore.put_async(self._store, name, source, use_multipart=False)

    async def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        """See Objects."""
        with _reached():
            try:
                mode: Any = "create" if tag is None else {"e_tag": tag}
                await obstore.put_async(self._store, name, data, mode=mode)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return False
            return True

    async def get(self, name: str) -> Tagged | None:
        """See Objects."""
        with _reached():
            try:
                found = await obstore.get_async(self._store, name)
            except FileNotFoundError:
                return None
            return Tagged(bytes(await found.bytes_async()), found.meta["e_tag"] or "")

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Opened | None]:
        """See Objects."""
        with _reached():
            try:
                found = await obstore.get_async(self._store, name)
            except FileNotFoundError:
                yield None
                return
            yield Opened(found.meta["size"], _chunks(found.stream(min_chunk_size=CHUNK_BYTES)))

    async def stat(self, name: str) -> Listed | None:
        """See Objects."""
        with _reached():
            try:
                found = await obstore.head_async(self._store, name)
            except FileNotFoundError:
                return None
            return Listed(name, found["size"], found["last_modified"].timestamp())

    async def delete(self, name: str) -> None:
        """See Objects."""
        with _reached():
            await obstore.delete_async(self._store, name)

    async def list(self, prefix: str) -> list[Listed]:
        """See Objects."""
        with _reached():
            return [
                Listed(found["path"], found["size"], found["last_modified"].timestamp())
                async for batch in obstore.list(self._store, prefix)
                for found in batch
            ]


async def _chunks(stream: Any) -> AsyncIterator[bytes]:
    with _reached():
        async for chunk in stream:
            view = memoryview(chunk)
            for start in range(0, view.nbytes, CHUNK_BYTES):
                yield bytes(view[start : start + CHUNK_BYTES])


@contextmanager
def _reached() -> Iterator[None]:
    """Storage that does not answer as it should is away."""
    try:
        yield
    except BaseError as error:
        raise UnavailableError("the object storage cannot be reached", _RETRY_AFTER_SECONDS) from error
