"""What no label is on is kept for its time and then deleted, whatever goes on meanwhile."""

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline.errors import NotFoundError
from paceline.v1 import adapter_pb2
from services.adapter_store.catalog import Catalog, Files
from services.adapter_store.folder_objects import FolderObjects, own_folder
from services.adapter_store.objects import Objects
from services.adapter_store.s3_objects import S3Objects
from services.adapter_store.settings import AdapterStoreSettings
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from support.adapters import Store, code_of, files
from support.served import SERVER


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
