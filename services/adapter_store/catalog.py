"""Adapters by digest, who may fetch them, and the labels that their owners put on them: see layout.py.

An upload writes the right to fetch, then the content, then the label, so that a sweep never takes what is being written
for forgotten; whoever takes a label off an adapter renews the right first, and what a sweep finds old it looks at again
before it deletes it. Labels change only from what they were when they were looked at: of two that race one wins.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from google.protobuf.json_format import MessageToJson, Parse

from paceline.errors import AlreadyExistsError, NotFoundError, QuotaExceededError
from paceline.v1 import adapter_pb2
from services.adapter_store.layout import (
    ADAPTERS,
    LABELS,
    OWNERS,
    content_object,
    label_object,
    labels_prefix,
    owner_object,
    owners_prefix,
)
from services.adapter_store.objects import Objects, Opened, Tagged
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME

_log = logging.getLogger(__name__)
_FILES = (CONFIG_NAME, WEIGHTS_NAME)
_MAX_READS = 16


class Files(NamedTuple):
    """An adapter that was found to be in order."""

    config: bytes
    weights: Path


class Catalog:
    """All that the store knows, in one place for objects."""

    def __init__(self, objects: Objects, max_labels: int, keep_seconds: float) -> None:
        self._objects = objects
        self._max_labels = max_labels
        self._keep_seconds = keep_seconds
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By digest, while an adapter is put or swept, and by prefix of labels, while one of them changes."""

    async def check_label(self, namespace: str, name: str, *, draft: bool) -> None:
        """Raises what `put`, or for the draft `put_draft`, would raise for any adapter."""
        if draft:
            await self.resolve(namespace, name)
        elif await self._objects.stat(label_object(namespace, name)) is None:
            await self._check_quota(namespace)

    async def put(
        self, namespace: str, adapter: adapter_pb2.Adapter, files: Files, *, replace: bool
    ) -> adapter_pb2.Adapter:
        """Keeps an adapter and puts its label on it; returns what the label is on then.

        A label that is on it already stays as it is. Raises AlreadyExistsError when the label is on another and may not
        be moved, QuotaExceededError when the namespace has as many labels as it may.
        """
        label = label_object(namespace, adapter.name)

        async def put_label() -> adapter_pb2.Adapter:
            while True:
                found = await self._objects.get(label)
                old = await self._check(namespace, adapter, found, replace=replace)
                if old is not None and old.digest == adapter.digest:
                    return old
                if old is not None:
                    await self._renew(namespace, old.digest, old.draft_digest)
                if await self._objects.swap(label, _encode(adapter), found.tag if found else None):
                    return adapter  # Else another process was quicker.

        async with self._lock(adapter.digest):
            # What will be refused is not written.
            await self._check(namespace, adapter, await self._objects.get(label), replace=replace)
            await self._keep(namespace, adapter.digest, files)
            async with self._lock(labels_prefix(namespace)):
                labelled = await put_label()
            await self._keep(namespace, adapter.digest, files)  # Unless another process's sweep took it.
            return labelled

    async def put_draft(self, namespace: str, name: str, digest: str, files: Files) -> adapter_pb2.Adapter:
        """Keeps an adapter for the draft beside the one that a label is on. Raises NotFoundError without one."""
        label = label_object(namespace, name)

        async def change_label() -> adapter_pb2.Adapter:
            while (found := await self._objects.get(label)) is not None:
                adapter = _decode(found.data)
                if adapter.draft_digest == digest:
                    return adapter
                await self._renew(namespace, adapter.draft_digest)
                adapter.draft_digest = digest
                if await self._objects.swap(label, _encode(adapter), found.tag):
                    return adapter
            raise NotFoundError("adapter", name)

        async with self._lock(digest):
            await self.resolve(namespace, name)
            await self._keep(namespace, digest, files)
            async with self._lock(labels_prefix(namespace)):
                adapter = await change_label()
            await self._keep(namespace, digest, files)
            return adapter

    async def resolve(self, namespace: str, name: str) -> adapter_pb2.Adapter:
        """What a label is on. Raises NotFoundError."""
        found = await self._objects.get(label_object(namespace, name))
        if found is None:
            raise NotFoundError("adapter", name)
        return _decode(found.data)

    async def labels(self, namespace: str) -> list[adapter_pb2.Adapter]:
        """All labels of a namespace, by name."""
        found = await self._records(labels_prefix(namespace))
        return sorted(found.values(), key=lambda adapter: adapter.name)

    async def is_for_draft(self, namespace: str, digest: str) -> bool:
        """Whether one of a namespace's labels has this adapter for the draft."""
        return any(adapter.draft_digest == digest for adapter in await self.labels(namespace))

    async def remove(self, namespace: str, name: str) -> None:
        """Takes a label away. Raises NotFoundError without one."""
        async with self._lock(labels_prefix(namespace)):
            adapter = await self.resolve(namespace, name)
            await self._renew(namespace, adapter.digest, adapter.draft_digest)
            await self._objects.delete(label_object(namespace, name))

    @asynccontextmanager
    async def open(self, namespace: str, digest: str) -> AsyncIterator[dict[str, Opened]]:
        """Both files of an adapter, by name. Raises NotFoundError unless the namespace may fetch it."""
        async with AsyncExitStack() as stack:
            files: dict[str, Opened] = {}
            if await self._objects.stat(owner_object(digest, namespace)) is not None:
                for name in _FILES:
                    opened = await stack.enter_async_context(self._objects.open(content_object(digest, name)))
                    if opened is not None:
                        files[name] = opened
            if len(files) < len(_FILES):
                raise NotFoundError("adapter", digest)
            yield files

    async def sweep(self) -> int:
        """Deletes content that no label is on, and was not for long enough; returns how many adapters."""
        before = time.time() - self._keep_seconds
        labelled = await self._labelled(LABELS)
        owned: set[str] = set()
        for found in await self._objects.list(OWNERS):
            is_needed = found.name in labelled or found.modified > before
            if is_needed or not await self._disown(found.name, before):
                owned.add(found.name.split("/")[1])
        kept = {found.name.split("/")[1] for found in await self._objects.list(ADAPTERS)}
        count = sum([await self._forget(digest) for digest in sorted(kept - owned)])
        if count:
            _log.info("%d adapters deleted that no name was on", count)
        return count

    async def _disown(self, owner: str, before: float) -> bool:
        """Takes a namespace's right to fetch away, unless it is needed by now."""
        _, digest, namespace = owner.split("/")
        async with self._lock(digest):
            if owner in await self._labelled(f"{LABELS}{namespace}/"):
                return False
            # Looked at last: whoever took the label off has renewed it before.
            found = await self._objects.stat(owner)
            if found is not None and found.modified > before:
                return False
            await self._objects.delete(owner)
            return True

    async def _forget(self, digest: str) -> bool:
        """Deletes the content of an adapter, unless somebody has a right to it by now."""
        async with self._lock(digest):
            if await self._objects.list(owners_prefix(digest)):
                return False
            for name in _FILES:  # The configuration goes first: what is half deleted is not there.
                await self._objects.delete(content_object(digest, name))
            return True

    async def _labelled(self, prefix: str) -> set[str]:
        """Names of the owner objects that labels need."""
        return {
            f"{OWNERS}{digest}/{label.split('/')[1]}"
            for label, adapter in (await self._records(prefix)).items()
            for digest in (adapter.digest, adapter.draft_digest)
        }

    async def _records(self, prefix: str) -> dict[str, adapter_pb2.Adapter]:
        """What labels are on, by name of their objects."""
        reads = asyncio.Semaphore(_MAX_READS)

        async def read(name: str) -> Tagged | None:
            async with reads:
                return await self._objects.get(name)

        names = [found.name for found in await self._objects.list(prefix)]
        records = await asyncio.gather(*map(read, names))
        return {name: _decode(record.data) for name, record in zip(names, records, strict=True) if record is not None}

    async def _check(
        self, namespace: str, adapter: adapter_pb2.Adapter, found: Tagged | None, *, replace: bool
    ) -> adapter_pb2.Adapter | None:
        """What the label is on now. Raises when it may not be put on this adapter."""
        if found is None:
            await self._check_quota(namespace)
            return None
        old = _decode(found.data)
        if not replace and old.digest != adapter.digest:
            raise AlreadyExistsError("adapter", adapter.name, "it can be replaced if that is asked for")
        return old

    async def _check_quota(self, namespace: str) -> None:
        count = len(await self._objects.list(labels_prefix(namespace)))
        if count >= self._max_labels:
            raise QuotaExceededError(namespace, f"{count} adapters are stored, which is the limit")

    async def _keep(self, namespace: str, digest: str, files: Files) -> None:
        """Writes the right to fetch and, where it is not there, the content."""
        await self._renew(namespace, digest)
        sizes = {WEIGHTS_NAME: files.weights.stat().st_size, CONFIG_NAME: len(files.config)}
        for name, size in sizes.items():
            found = await self._objects.stat(content_object(digest, name))
            if found is None or found.num_bytes != size:
                source = files.weights if name == WEIGHTS_NAME else files.config
                await self._objects.put(content_object(digest, name), source)

    async def _renew(self, namespace: str, *digests: str) -> None:
        """Writes the right to fetch: the time for which it is kept without a label begins now."""
        for digest in digests:
            if digest:
                await self._objects.put(owner_object(digest, namespace), b"")

    def _lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())


def _encode(adapter: adapter_pb2.Adapter) -> bytes:
    return MessageToJson(adapter, preserving_proto_field_name=True).encode()


def _decode(record: bytes) -> adapter_pb2.Adapter:
    return Parse(record, adapter_pb2.Adapter(), ignore_unknown_fields=True)
