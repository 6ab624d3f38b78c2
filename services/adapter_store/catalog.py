"""Adapters by digest, who may fetch them, and the labels that their owners put on them: see layout.py.

An upload writes the right to fetch, then the content, then the label, so that a sweep never takes what is being written
for forgotten. Labels change only from what they were when they were looked at: of two that race one wins.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from google.protobuf.json_format import MessageToJson, Parse

from paceline.v1 import adapter_pb2
from services.adapter_store.layout import (
    ADAPTERS,
    LABELS,
    OWNERS,
    content_object,
    label_object,
    labels_prefix,
    owner_object,
)
from services.adapter_store.objects import Objects, Opened, Tagged
from services.common.errors import AlreadyExistsError, NotFoundError, QuotaExceededError
from services.common.lora_config import CONFIG_NAME, WEIGHTS_NAME

_log = logging.getLogger(__name__)
_FILES = (CONFIG_NAME, WEIGHTS_NAME)


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
        self._writing = asyncio.Lock()
        """Held while something is put or swept."""

    async def put(self, namespace: str, adapter: adapter_pb2.Adapter, files: Files, *, replace: bool) -> None:
        """Keeps an adapter and puts its label on it.

        Raises AlreadyExistsError when the label is on another and may not be moved, QuotaExceededError when the
        namespace has as many labels as it may.
        """
        async with self._writing:
            label, kept = label_object(namespace, adapter.name), False
            while True:
                found = await self._objects.get(label)
                await self._check(namespace, adapter, found, replace=replace)
                if not kept:
                    await self._keep(namespace, adapter.digest, files)
                    kept = True
                if await self._objects.swap(label, _encode(adapter), found.tag if found else None):
                    break  # Else another process was quicker.
            await self._keep(namespace, adapter.digest, files)  # Unless another process's sweep took it.

    async def put_draft(self, namespace: str, name: str, digest: str, files: Files) -> adapter_pb2.Adapter:
        """Keeps an adapter for the draft beside the one that a label is on. Raises NotFoundError without one."""
        async with self._writing:
            while True:
                found = await self._objects.get(label_object(namespace, name))
                if found is None:
                    raise NotFoundError("adapter", name)
                await self._keep(namespace, digest, files)
                adapter = _decode(found.data)
                adapter.draft_digest = digest
                if await self._objects.swap(label_object(namespace, name), _encode(adapter), found.tag):
                    return adapter

    async def resolve(self, namespace: str, name: str) -> adapter_pb2.Adapter:
        """What a label is on. Raises NotFoundError."""
        found = await self._objects.get(label_object(namespace, name))
        if found is None:
            raise NotFoundError("adapter", name)
        return _decode(found.data)

    async def labels(self, namespace: str) -> list[adapter_pb2.Adapter]:
        """All labels of a namespace, by name."""
        names = [found.name for found in await self._objects.list(labels_prefix(namespace))]
        records = [await self._objects.get(name) for name in names]
        return sorted((_decode(record.data) for record in records if record is not None), key=lambda found: found.name)

    async def remove(self, namespace: str, name: str) -> None:
        """Takes a label away. Raises NotFoundError without one."""
        async with self._writing:
            adapter = await self.resolve(namespace, name)
            # The time for which content is kept begins now.
            for digest in (adapter.digest, adapter.draft_digest):
                if digest:
                    await self._objects.put(owner_object(digest, namespace), b"")
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
        async with self._writing:
            before = time.time() - self._keep_seconds
            labelled = await self._labelled()
            owned: set[str] = set()
            for found in await self._objects.list(OWNERS):
                if found.name in labelled or found.modified > before:
                    owned.add(found.name.split("/")[1])
                else:
                    await self._objects.delete(found.name)
            forgotten: set[str] = set()
            # The configuration goes first: what is half deleted is not there.
            for found in sorted(await self._objects.list(ADAPTERS)):
                digest = found.name.split("/")[1]
                if digest not in owned and found.modified <= before:
                    await self._objects.delete(found.name)
                    forgotten.add(digest)
            if forgotten:
                _log.info("%d adapters deleted that no name was on", len(forgotten))
            return len(forgotten)

    async def _labelled(self) -> set[str]:
        """Names of the owner objects that some label needs."""
        needed: set[str] = set()
        for found in await self._objects.list(LABELS):
            record = await self._objects.get(found.name)
            if record is not None:
                adapter, namespace = _decode(record.data), found.name.split("/")[1]
                needed |= {f"{OWNERS}{digest}/{namespace}" for digest in (adapter.digest, adapter.draft_digest)}
        return needed

    async def _check(
        self, namespace: str, adapter: adapter_pb2.Adapter, found: Tagged | None, *, replace: bool
    ) -> None:
        if found is None:
            count = len(await self._objects.list(labels_prefix(namespace)))
            if count >= self._max_labels:
                raise QuotaExceededError(namespace, f"{count} adapters are stored, which is the limit")
        elif not replace and _decode(found.data).digest != adapter.digest:
            raise AlreadyExistsError("adapter", adapter.name, "it can be replaced if that is asked for")

    async def _keep(self, namespace: str, digest: str, files: Files) -> None:
        """Writes the right to fetch and, where it is not there, the content."""
        await self._objects.put(owner_object(digest, namespace), b"")
        if await self._objects.stat(content_object(digest, CONFIG_NAME)) is None:
            await self._objects.put(content_object(digest, WEIGHTS_NAME), files.weights)
            await self._objects.put(content_object(digest, CONFIG_NAME), files.config)


def _encode(adapter: adapter_pb2.Adapter) -> bytes:
    return MessageToJson(adapter, preserving_proto_field_name=True).encode()


def _decode(record: bytes) -> adapter_pb2.Adapter:
    return Parse(record, adapter_pb2.Adapter(), ignore_unknown_fields=True)
