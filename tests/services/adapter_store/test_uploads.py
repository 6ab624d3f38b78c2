"""Uploads that race, stall, break off, or come while the store is killed: one wins, or nothing is left."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline.errors import AlreadyExistsError, from_call
from paceline.internal.v1 import adapter_store_pb2 as pb
from paceline.v1 import adapter_pb2
from services.adapter_store.catalog import Catalog, Files
from services.adapter_store.objects import Objects
from services.common.lora.config import WEIGHTS_NAME, adapter_digest
from services.common.tokens import new_signing_key, public_key
from services.local.loading import wait_serving
from services.local.ports import free_port
from support.adapters import Store, announced, code_of, contents, files, pieces, running_store


async def test_too_many_uploads_at_once_are_told_to_try_again(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(data: bytes) -> AsyncIterator[bytes]:
        await go.wait()
        yield data

    async with running_store(tmp_path, max_uploads=1, upload_wait_seconds=0.1) as store:
        config, weights = files()
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(config, weights))
        first = asyncio.create_task(
            store.client.store(store.mint.owner_token("tenant/a"), header, slow(config + weights), 20)
        )
        while not any(name.startswith("incoming/") for name in contents(tmp_path)):
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await store.upload(config, weights)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_call(raised.value).retry_after_seconds
        go.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await first  # It announced no layers to fit.
        assert (await store.upload(config, weights)).rank == 4


async def test_an_announcement_of_many_files_is_told_their_number_alone(tmp_path: Path) -> None:
    async with running_store(tmp_path) as store:
        header = pb.StoreAdapterHeader(
            namespace="tenant/a",
            upload=adapter_pb2.AdapterUpload(name="mine", files=[adapter_pb2.AdapterFile(name="x")] * 33),
        )
        with pytest.raises(grpc.aio.AioRpcError, match="got 33 files") as raised:
            await store.client.store(store.mint.owner_token("tenant/a"), header, pieces(b""), 20)
        assert len(from_call(raised.value).violations) == 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
async def test_a_header_whose_length_begins_as_a_pickle_does_is_a_header(tmp_path: Path, protocol: int) -> None:
    config, weights = files()
    old = int.from_bytes(weights[:8], "little")
    length = (1 << 16) + (protocol << 8) + 0x80
    header = weights[8 : 8 + old].ljust(length)
    async with running_store(tmp_path) as store:
        stored = await store.upload(config, length.to_bytes(8, "little") + header + weights[8 + old :])
    assert stored.rank == 4


async def test_a_tenant_that_holds_all_it_may_does_not_hold_others_up(tmp_path: Path) -> None:
    go = asyncio.Event()
    config, weights = files()

    async def slow() -> AsyncIterator[bytes]:
        await go.wait()
        yield config + weights

    async with running_store(tmp_path, max_uploads=4) as store:
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(config, weights))
        token = store.mint.owner_token("tenant/a")
        uploads = [asyncio.create_task(store.client.store(token, header, slow(), 20)) for _ in range(6)]
        while sum(name.endswith(WEIGHTS_NAME) for name in contents(tmp_path)) < 2:
            await asyncio.sleep(0)
        assert (await store.upload(config, weights, tenant="tenant/b")).rank == 4
        go.set()
        codes = [await code_of(upload) for upload in uploads]  # They announced no layers to fit.
        assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 6


async def test_an_upload_that_crawls_is_ended(tmp_path: Path) -> None:
    """However regularly a byte comes."""

    async def crawling() -> AsyncIterator[bytes]:
        while True:
            yield b"{"
            await asyncio.sleep(0.02)

    async with running_store(tmp_path, stall_seconds=0.3, min_upload_bytes_per_second=1000) as store:
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(*files()))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await store.client.store(store.mint.owner_token("tenant/a"), header, crawling(), 20)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "bytes a second" in (raised.value.details() or "")
        assert contents(tmp_path) == set()


async def test_pieces_that_a_gateway_takes_are_taken_by_the_store(tmp_path: Path) -> None:
    """Of 32 MiB: the store's messages are smaller."""

    async def large() -> AsyncIterator[bytes]:
        yield b" " * (32 << 20)
        yield b"x"

    async with running_store(tmp_path) as store:
        upload = announced(*files())
        upload.files[1].num_bytes = (32 << 20) + 1 - upload.files[0].num_bytes
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=upload)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await store.client.store(store.mint.owner_token("tenant/a"), header, large(), 60)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "JSON" in (raised.value.details() or "")


async def test_an_upload_that_stalls_is_ended(tmp_path: Path) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    for limits in ({"stall_seconds": 0.2}, {"upload_seconds": 0.2}):
        async with running_store(tmp_path, **limits) as store:
            header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(*files()))
            call = store.client.store(store.mint.owner_token("tenant/a"), header, stuck(), 20)
            assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
            assert contents(tmp_path) == set()


@pytest.mark.parametrize("how", ["cancelled", "disconnected"])
async def test_an_upload_that_breaks_off_leaves_nothing(store: Store, tmp_path: Path, how: str) -> None:
    config, weights = files()
    for part in (0, 1, len(config), len(config) + 10):
        reached = asyncio.Event()

        async def broken(size: int = part, event: asyncio.Event = reached) -> AsyncIterator[bytes]:
            async for piece in pieces((config + weights)[:size], 64):
                yield piece
            event.set()
            await asyncio.Event().wait()

        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(config, weights))
        upload = asyncio.create_task(store.client.store(store.mint.owner_token("tenant/a"), header, broken(), 20))
        await reached.wait()
        if how == "cancelled":
            upload.cancel()
        else:
            await store.client.close()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await upload
        async with asyncio.timeout(10):
            while any(name.startswith("incoming/") for name in contents(tmp_path)):
                await asyncio.sleep(0.01)
        if how == "disconnected":
            break
    if how == "cancelled":
        assert await store.names() == []


async def test_a_store_killed_in_the_midst_of_an_upload_has_nothing_of_it(tmp_path: Path) -> None:
    key, port = new_signing_key(), free_port()
    arguments = [
        sys.executable, "-m", "services.adapter_store", f"--folder={tmp_path}", f"--server.port={port}",
        f'--token-keys=["{public_key(key)}"]',
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    store = Store(f"127.0.0.1:{port}", key)
    config, weights = files()

    async def endless() -> AsyncIterator[bytes]:
        yield (config + weights)[:-1]
        await asyncio.Event().wait()

    for kill in (True, False):
        process = await asyncio.create_subprocess_exec(*arguments, env=environment, stderr=asyncio.subprocess.DEVNULL)
        await asyncio.wait_for(wait_serving(f"127.0.0.1:{port}"), 60)
        if kill:
            header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(config, weights))
            upload = asyncio.create_task(store.client.store(store.mint.owner_token("tenant/a"), header, endless(), 60))
            while not any(name.endswith(WEIGHTS_NAME) for name in contents(tmp_path)):
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert await code_of(upload) is grpc.StatusCode.UNAVAILABLE
        else:
            assert contents(tmp_path) == set()
            assert (await store.upload(config, weights)).rank == 4
            process.send_signal(signal.SIGTERM)
        await process.wait()
    await store.client.close()


async def test_what_is_refused_at_once_is_not_sent(store: Store) -> None:
    config, weights = files()
    num_sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal num_sent
        async for piece in pieces(config + weights):
            num_sent += len(piece)
            yield piece

    token = store.mint.owner_token("tenant/a")
    for name, role in (("../x", adapter_pb2.ADAPTER_ROLE_TARGET), ("mine", adapter_pb2.ADAPTER_ROLE_DRAFT)):
        upload = announced(config, weights)
        upload.name, upload.role = name, role
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=upload)
        with pytest.raises(grpc.aio.AioRpcError):
            await store.client.store(token, header, counted(), 20)
        assert num_sent == 0


async def test_what_data_raise_ends_the_upload_and_is_raised(store: Store, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"{"
        raise ZeroDivisionError

    header = pb.StoreAdapterHeader(namespace="tenant/a", upload=announced(*files()))
    with pytest.raises(ZeroDivisionError):
        await store.client.store(store.mint.owner_token("tenant/a"), header, broken(), 20)
    async with asyncio.timeout(10):
        while any(name.startswith("incoming/") for name in contents(tmp_path)):
            await asyncio.sleep(0)
    assert await store.names() == []


async def test_uploads_of_the_same_content_at_once_all_succeed(store: Store, objects_of: Any) -> None:
    adapters = await asyncio.gather(*(store.upload(*files()) for _ in range(4)))
    assert len({adapter.digest for adapter in adapters}) == 1
    assert len({adapter.create_time.ToNanoseconds() for adapter in adapters}) == 1
    assert len(await objects_of("adapters/")) == 2


@pytest.mark.parametrize("replace", [False, True])
async def test_of_uploads_that_race_for_a_name_one_wins(store: Store, replace: bool) -> None:
    for round_number in range(3):
        name = f"name{round_number}"
        uploads = [store.upload(*files(n), name=name, replace=replace) for n in range(4)]
        outcomes = await asyncio.gather(*uploads, return_exceptions=True)
        won = [outcome.digest for outcome in outcomes if isinstance(outcome, adapter_pb2.Adapter)]
        assert len(won) == (4 if replace else 1)
        assert (await store.resolve(name)).digest in won
        lost = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert {error.code() for error in lost} <= {grpc.StatusCode.ALREADY_EXISTS}


@pytest.mark.parametrize("replace", [False, True])
async def test_of_stores_that_race_for_a_name_one_wins(objects: Objects, tmp_path: Path, replace: bool) -> None:
    """Several stores on one place, as with object storage."""

    async def put(catalog: Catalog, number: int, name: str) -> str | None:
        config, weights = files(number)
        path = tmp_path / f"{name}-{number}"
        path.write_bytes(weights)
        adapter = adapter_pb2.Adapter(name=name, digest=adapter_digest(config, weights))
        try:
            await catalog.put("tenant/a", adapter, Files(config, path), replace=replace)
        except AlreadyExistsError:
            return None
        return adapter.digest

    catalogs = [Catalog(objects, 100, 3600) for _ in range(4)]
    for name in ("x", "y", "z"):
        outcomes = await asyncio.gather(*(put(catalog, n, name) for n, catalog in enumerate(catalogs)))
        won = [digest for digest in outcomes if digest is not None]
        assert len(won) == (4 if replace else 1)
        assert (await catalogs[0].resolve("tenant/a", name)).digest in won
