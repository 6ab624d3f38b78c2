"""What a store keeps, for whom, and for how long: in a folder, and in object storage that speaks S3."""

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from adapters import Store, contents, files, pieces, running_store
from gateway.client import error_details
from gateway.launcher import free_port, wait_serving
from paceline.v1 import adapter_pb2
from paceline.v1 import adapter_store_pb2 as pb
from services.adapter_store.catalog import Catalog, Files
from services.adapter_store.folder_objects import FolderInUseError, FolderObjects, own_folder
from services.adapter_store.objects import Objects
from services.adapter_store.s3_objects import S3Objects
from services.adapter_store.settings import AdapterStoreSettings
from services.common.errors import AlreadyExistsError, NotFoundError
from services.common.lora_config import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from services.common.tenant_token import PUBLIC_NAMESPACE, TokenMint, new_signing_key, public_key
from system import SERVER

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region": "us-east-1"}
BUCKET = "adapters"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a server that speaks S3, with a bucket."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
    yield address
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings of where adapters are kept."""
    if request.param == "folder":
        return {}
    return {
        "s3_url": f"s3://{BUCKET}/{tmp_path.name}", "s3_endpoint": request.getfixturevalue("s3"),
        "s3_region": "us-east-1", "s3_access_key": "key", "s3_secret_key": "secret", "s3_allow_http": True,
    }  # fmt: skip


@pytest.fixture
async def store(place: dict[str, Any], tmp_path: Path) -> AsyncIterator[Store]:
    async with running_store(tmp_path, **place) as running:
        yield running


@pytest.fixture
def objects(place: dict[str, Any], tmp_path: Path) -> Iterator[Objects]:
    settings = AdapterStoreSettings(token_keys=("00",), folder=tmp_path, server=SERVER, **place)
    with own_folder(tmp_path) as incoming:
        yield S3Objects.connect(settings) if place else FolderObjects(tmp_path, incoming)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def test_what_was_uploaded_can_be_resolved_listed_and_fetched(store: Store) -> None:
    config, weights = files()
    adapter = await store.upload(config, weights)
    assert adapter.digest == adapter_digest(config, weights)
    assert (adapter.rank, adapter.num_bytes, adapter.model) == (4, len(config) + len(weights), "tiny")
    assert list(adapter.target_modules) == ["down_proj", "q_proj", "v_proj"]
    assert await store.resolve() == adapter
    assert await store.fetch(adapter.digest) == (config, weights)
    await store.upload(*files(1), name="other")
    assert await store.names() == ["mine", "other"]
    await store.remove()
    assert await store.names() == ["other"]
    assert await code_of(store.resolve()) is grpc.StatusCode.NOT_FOUND
    assert await store.fetch(adapter.digest) == (config, weights), "for those who have it in use"


async def test_the_same_content_is_stored_once(store: Store, objects_of: Any) -> None:
    first = await store.upload(*files())
    again = await store.upload(*files(), name="again")
    theirs = await store.upload(*files(), tenant="tenant/b")
    assert first.digest == again.digest == theirs.digest
    assert len(await objects_of("adapters/")) == 2
    assert len(await objects_of("owners/")) == 2


@pytest.fixture
def objects_of(place: dict[str, Any], tmp_path: Path, s3: str) -> Any:
    """Names of what is kept under a prefix, looked at from outside."""

    async def found(prefix: str) -> list[str]:
        if not place:
            return sorted(name for name in contents(tmp_path) if name.startswith(prefix))
        outside = S3Store(BUCKET, prefix=tmp_path.name, endpoint=s3, client_options={"allow_http": True}, **KEYS)
        return sorted([meta["path"] async for batch in obstore.list(outside, prefix) for meta in batch])

    return found


async def test_a_name_is_moved_only_when_that_is_asked_for(store: Store) -> None:
    old = await store.upload(*files(0))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await store.upload(*files(1))
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert error_details(raised.value)[0].resource_name == "mine"
    assert (await store.resolve()).digest == old.digest
    assert (await store.upload(*files(0))).digest == old.digest, "the same content again is no other"
    new = await store.upload(*files(1), replace=True)
    assert (await store.resolve()).digest == new.digest != old.digest
    assert await store.fetch(old.digest) == files(0)


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


async def test_tenants_do_not_see_each_other(store: Store) -> None:
    mine = await store.upload(*files())
    for call_theirs, call_nothing in (
        (store.resolve("mine", "tenant/b"), store.resolve("nothing", "tenant/b")),
        (store.remove("mine", "tenant/b"), store.remove("nothing", "tenant/b")),
        (store.fetch(mine.digest, "tenant/b"), store.fetch("0" * 64, "tenant/b")),
    ):
        said = []
        for call, name in ((call_theirs, "mine"), (call_nothing, "nothing")):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            details = str(error_details(raised.value)).replace(name, "NAME").replace(mine.digest, "NAME")
            message = str(raised.value.details()).replace(name, "NAME").replace(mine.digest, "NAME")
            said.append((raised.value.code(), message.replace("0" * 64, "NAME"), details.replace("0" * 64, "NAME")))
        assert said[0] == said[1]
        assert said[0][0] is grpc.StatusCode.NOT_FOUND
    assert await store.names("tenant/b") == []
    theirs = await store.upload(*files(1), tenant="tenant/b")
    assert (await store.resolve()).digest == mine.digest
    assert (await store.resolve(tenant="tenant/b")).digest == theirs.digest
    await store.remove(tenant="tenant/b")
    assert await store.names() == ["mine"]


async def test_without_a_token_that_holds_nothing_is_answered(store: Store) -> None:
    other = TokenMint(new_signing_key(), 60)
    assert await code_of(store.resolve(token=other.token("tenant/a"))) is grpc.StatusCode.UNAUTHENTICATED
    assert await code_of(store.resolve(token=store.mint.token("tenant/b"))) is grpc.StatusCode.PERMISSION_DENIED
    assert await code_of(store.upload(*files(), token=other.token("tenant/a"))) is grpc.StatusCode.UNAUTHENTICATED
    wrong = store.upload(*files(), token=store.mint.token("tenant/b"))
    assert await code_of(wrong) is grpc.StatusCode.PERMISSION_DENIED
    assert await code_of(store.client.fetch("", "tenant/a", "0" * 64, 5)) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_tenant_has_as_many_as_it_may(place: dict[str, Any], tmp_path: Path) -> None:
    async with running_store(tmp_path, max_adapters_per_namespace=2, **place) as store:
        for number in range(2):
            await store.upload(*files(number), name=f"a{number}")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await store.upload(*files(2), name="a2")
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_details(raised.value)[0].violations[0].description
        await store.upload(*files(2), name="a1", replace=True)
        await store.upload(*files(2), tenant="tenant/b")
        await store.remove("a0")
        await store.upload(*files(3), name="a2")


async def test_an_adapter_of_the_draft_stands_beside_the_targets(store: Store) -> None:
    draft = adapter_pb2.ADAPTER_ROLE_DRAFT
    assert await code_of(store.upload(*files(1), role=draft)) is grpc.StatusCode.NOT_FOUND
    target = await store.upload(*files(0))
    both = await store.upload(*files(1), role=draft)
    assert (both.digest, both.draft_digest) == (target.digest, adapter_digest(*files(1)))
    assert await store.resolve() == both
    assert await store.fetch(both.draft_digest) == files(1)
    replaced = await store.upload(*files(2), replace=True)
    assert (await store.resolve()).draft_digest == replaced.draft_digest == ""


async def test_a_sweep_deletes_what_no_name_is_on_once_its_time_is_over(objects: Objects, tmp_path: Path) -> None:
    kept, forgetful = Catalog(objects, 100, 3600), Catalog(objects, 100, 0)

    async def put(catalog: Catalog, number: int, namespace: str = "tenant/a") -> str:
        config, weights = files(number)
        path = tmp_path / f"{number}"
        path.write_bytes(weights)
        adapter = adapter_pb2.Adapter(name=f"a{number}", digest=adapter_digest(config, weights))
        await catalog.put(namespace, adapter, Files(config, path), replace=False)
        return adapter.digest

    async def has(namespace: str, digest: str) -> bool:
        try:
            async with kept.open(namespace, digest) as opened:
                return set(opened) == {CONFIG_NAME, WEIGHTS_NAME}
        except NotFoundError:
            return False

    first, second, shared = await put(kept, 0), await put(kept, 1), await put(kept, 2)
    assert await put(kept, 2, "tenant/b") == shared
    await kept.remove("tenant/a", "a0")
    await kept.remove("tenant/a", "a2")
    assert await kept.sweep() == 0
    assert await has("tenant/a", first)
    assert await forgetful.sweep() == 1
    assert [await has("tenant/a", digest) for digest in (first, second, shared)] == [False, True, False]
    assert await has("tenant/b", shared)
    await kept.remove("tenant/b", "a2")
    await kept.remove("tenant/a", "a1")
    assert await forgetful.sweep() == 2
    assert await objects.list("adapters/") == await objects.list("owners/") == await objects.list("labels/") == []


async def test_a_folder_has_one_process(tmp_path: Path) -> None:
    async with running_store(tmp_path):
        with pytest.raises(FolderInUseError), own_folder(tmp_path):
            pass
    with own_folder(tmp_path):
        pass


async def test_too_many_uploads_at_once_are_told_to_try_again(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(data: bytes) -> AsyncIterator[bytes]:
        await go.wait()
        yield data

    async with running_store(tmp_path, max_uploads=1) as store:
        config, weights = files()
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=_announced(config, weights))
        first = asyncio.create_task(
            store.client.store(store.mint.token("tenant/a"), header, slow(config + weights), 20)
        )
        while not any(name.startswith("incoming/") for name in contents(tmp_path)):
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await store.upload(config, weights)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_details(raised.value)[0].retry_delay.ToTimedelta().total_seconds() > 0
        go.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await first  # It announced no layers to fit.
        assert (await store.upload(config, weights)).rank == 4


async def test_an_upload_that_stalls_is_ended(tmp_path: Path) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    for limits in ({"stall_seconds": 0.2}, {"upload_seconds": 0.2}):
        async with running_store(tmp_path, **limits) as store:
            header = pb.StoreAdapterHeader(namespace="tenant/a", upload=_announced(*files()))
            call = store.client.store(store.mint.token("tenant/a"), header, stuck(), 20)
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

        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=_announced(config, weights))
        upload = asyncio.create_task(store.client.store(store.mint.token("tenant/a"), header, broken(), 20))
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
            header = pb.StoreAdapterHeader(namespace="tenant/a", upload=_announced(config, weights))
            upload = asyncio.create_task(store.client.store(store.mint.token("tenant/a"), header, endless(), 60))
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


async def test_what_a_label_was_taken_off_is_kept_for_its_time(tmp_path: Path) -> None:
    """However long ago it was uploaded: streams with it may go on elsewhere, and fetch it there."""

    async def put(number: int) -> str:
        config, weights = files(number)
        path = tmp_path / f"weights{number}"
        path.write_bytes(weights)
        adapter = adapter_pb2.Adapter(name="a", digest=adapter_digest(config, weights))
        return (await catalog.put("tenant/a", adapter, Files(config, path), replace=True)).digest

    async def put_draft(number: int) -> str:
        config, weights = files(number)
        path = tmp_path / f"weights{number}"
        path.write_bytes(weights)
        digest = adapter_digest(config, weights)
        await catalog.put_draft("tenant/a", "a", digest, Files(config, path))
        return digest

    def grow_old() -> None:
        for owner in (tmp_path / "owners").rglob("*"):
            os.utime(owner, (0, 0))

    async def is_kept(digest: str) -> bool:
        await catalog.sweep()
        async with catalog.open("tenant/a", digest):
            return True

    with own_folder(tmp_path) as incoming:
        catalog = Catalog(FolderObjects(tmp_path, incoming), 100, 3600)
        first, draft = await put(0), await put_draft(10)
        grow_old()
        other_draft = await put_draft(11)
        assert await is_kept(draft)
        grow_old()
        second = await put(1)
        assert await is_kept(other_draft)
        assert await is_kept(first)
        grow_old()
        await catalog.remove("tenant/a", "a")
        assert await is_kept(second)
        grow_old()
        await catalog.sweep()
        assert not (tmp_path / "adapters").exists()


async def test_the_same_content_again_changes_nothing(store: Store) -> None:
    target = await store.upload(*files(0))
    both = await store.upload(*files(1), role=adapter_pb2.ADAPTER_ROLE_DRAFT)
    assert (both.digest, both.create_time) == (target.digest, target.create_time)
    for replace in (False, True):
        assert await store.upload(*files(0), replace=replace) == both
    assert await store.upload(*files(1), role=adapter_pb2.ADAPTER_ROLE_DRAFT) == both
    assert await store.resolve() == both


async def test_uploads_of_the_same_content_at_once_all_succeed(store: Store, objects_of: Any) -> None:
    adapters = await asyncio.gather(*(store.upload(*files()) for _ in range(4)))
    assert len({adapter.digest for adapter in adapters}) == 1
    assert len({adapter.create_time.ToNanoseconds() for adapter in adapters}) == 1
    assert len(await objects_of("adapters/")) == 2


async def test_sweeps_and_uploads_at_once_leave_every_label_with_its_content(objects: Objects, tmp_path: Path) -> None:
    catalog = Catalog(objects, 100, 0)
    config, weights = files()
    digest, path = adapter_digest(config, weights), tmp_path / "weights"
    path.write_bytes(weights)

    async def upload_and_remove(name: str) -> None:
        for _ in range(5):
            adapter = adapter_pb2.Adapter(name=name, digest=digest)
            await catalog.put("tenant/a", adapter, Files(config, path), replace=False)
            async with catalog.open("tenant/a", digest) as opened:
                assert opened[WEIGHTS_NAME].num_bytes == len(weights)
            await catalog.remove("tenant/a", name)

    uploads = [asyncio.create_task(upload_and_remove(name)) for name in ("a", "b")]
    num_sweeps = 0
    while not all(upload.done() for upload in uploads):
        await catalog.sweep()
        num_sweeps += 1
    await asyncio.gather(*uploads)
    assert num_sweeps > 5


@pytest.mark.parametrize("damage", ["gone", "cut off"])
async def test_content_that_was_damaged_is_whole_after_another_upload(
    store: Store, place: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    adapter = await store.upload(*files())
    name = f"adapters/{adapter.digest}/{WEIGHTS_NAME}"
    settings = AdapterStoreSettings(token_keys=("00",), folder=tmp_path, server=SERVER, **place)
    (tmp_path / "outside").mkdir()
    objects: Objects = S3Objects.connect(settings) if place else FolderObjects(tmp_path, tmp_path / "outside")
    if damage == "gone":
        await objects.delete(name)
        assert await code_of(store.fetch(adapter.digest)) is grpc.StatusCode.NOT_FOUND
    else:
        await objects.put(name, files()[1][:-1])
        assert len((await store.fetch(adapter.digest))[1]) == len(files()[1]) - 1
    await store.upload(*files(), name="again")
    assert await store.fetch(adapter.digest) == files()


async def test_the_namespace_that_tokens_share_has_no_adapters(store: Store) -> None:
    token = store.mint.token("tenant/a")
    for call in (
        store.upload(*files(), tenant=PUBLIC_NAMESPACE, token=token),
        store.resolve(tenant=PUBLIC_NAMESPACE, token=token),
        store.client.list(token, PUBLIC_NAMESPACE, 5),
        store.client.remove(token, PUBLIC_NAMESPACE, "mine", 5),
        store.client.fetch(token, PUBLIC_NAMESPACE, "0" * 64, 5),
    ):
        assert await code_of(call) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_namespace_may_be_longer_than_a_files_name(store: Store) -> None:
    tenants = ["ä" * 120, "ä" * 119 + "b"]
    for number, tenant in enumerate(tenants):
        adapter = await store.upload(*files(number), tenant=tenant)
        assert await store.fetch(adapter.digest, tenant) == files(number)
    assert (await store.resolve(tenant=tenants[0])).digest != (await store.resolve(tenant=tenants[1])).digest


async def test_what_is_refused_at_once_is_not_sent(store: Store) -> None:
    config, weights = files()
    num_sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal num_sent
        async for piece in pieces(config + weights):
            num_sent += len(piece)
            yield piece

    token = store.mint.token("tenant/a")
    for name, role in (("../x", adapter_pb2.ADAPTER_ROLE_TARGET), ("mine", adapter_pb2.ADAPTER_ROLE_DRAFT)):
        upload = _announced(config, weights)
        upload.name, upload.role = name, role
        header = pb.StoreAdapterHeader(namespace="tenant/a", upload=upload)
        with pytest.raises(grpc.aio.AioRpcError):
            await store.client.store(token, header, counted(), 20)
        assert num_sent == 0


async def test_what_data_raise_ends_the_upload_and_is_raised(store: Store, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"{"
        raise ZeroDivisionError

    header = pb.StoreAdapterHeader(namespace="tenant/a", upload=_announced(*files()))
    with pytest.raises(ZeroDivisionError):
        await store.client.store(store.mint.token("tenant/a"), header, broken(), 20)
    async with asyncio.timeout(10):
        while any(name.startswith("incoming/") for name in contents(tmp_path)):
            await asyncio.sleep(0)
    assert await store.names() == []


def _announced(config: bytes, weights: bytes) -> adapter_pb2.AdapterUpload:
    sizes = ((CONFIG_NAME, len(config)), (WEIGHTS_NAME, len(weights)))
    announced = [adapter_pb2.AdapterFile(name=name, num_bytes=size) for name, size in sizes]
    return adapter_pb2.AdapterUpload(name="mine", files=announced)
