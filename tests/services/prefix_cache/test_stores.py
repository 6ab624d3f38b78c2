"""Every tier keeps what it is given within its bounds, and lets nobody's blocks go but a namespace's own."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.prefix_cache.block import Block
from services.prefix_cache.disk_store import DiskStore
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.redis_store import RedisStore
from services.prefix_cache.store import Store
from services.prefix_cache.tiers import Tiers
from support.blocks import CAPACITY, QUOTA, SIZE, block
from support.redis_servers import eventually


@pytest.fixture(params=["memory", "disk", "redis", "redis cluster"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore(CAPACITY, QUOTA)
    elif request.param == "disk":
        made = disk = DiskStore(tmp_path, CAPACITY, QUOTA)
        await disk.open()
    else:
        cluster = request.param == "redis cluster"
        server = request.getfixturevalue("redis_cluster" if cluster else "redis_server")
        made = RedisStore(server.url, cluster=cluster, quota_bytes=QUOTA, timeout_seconds=30)
    yield made
    await made.close()


async def test_gives_back_what_was_put(store: Store) -> None:
    given = block(1)
    assert not await store.has("a", given.key)
    assert await store.get("a", given.key) is None
    assert await store.put("a", given)
    assert await store.put("a", given)
    assert await store.has("a", given.key)
    found = await store.get("a", given.key)
    assert found is not None
    assert bytes(found.data) == given.data
    assert found.is_intact
    usage = await store.usage("a")
    assert (usage.num_blocks, usage.num_bytes, usage.num_hits) == (1, SIZE, 1)


async def test_namespaces_do_not_see_each_other(store: Store) -> None:
    given = block(1)
    assert await store.put("a", given)
    assert not await store.has("b", given.key)
    assert await store.get("b", given.key) is None
    assert (await store.usage("b")).num_bytes == 0
    assert await store.clear("b") == 0
    assert await store.clear("a") == 1
    assert not await store.has("a", given.key)


async def test_a_namespace_makes_room_among_its_own(store: Store) -> None:
    theirs = [block(number) for number in range(5)]
    for given in theirs:
        assert await store.put("b", given)
    for number in range(100, 140):
        assert await store.put("a", block(number))
        assert (await store.usage("a")).num_bytes <= QUOTA
    assert [await store.has("b", given.key) for given in theirs] == [True] * 5
    assert (await store.usage("a")).num_evictions >= 30
    assert not await store.put("a", block(7, QUOTA + 1))


async def test_a_corrupt_block_is_dropped_and_counted(store: Store) -> None:
    good = block(1)
    wrong = Block(good.key, b"x" * SIZE, good.checksum)
    assert await store.put("a", wrong)
    tiers = Tiers([store], 0)
    assert await tiers.get("a", good.key) is None
    assert tiers.num_misses("a") == 1
    assert not await store.has("a", good.key)
    assert (await store.usage("a")).num_corrupt == 1
    assert await tiers.put("a", good)
    assert await tiers.get("a", good.key) is not None


async def test_the_disk_survives_a_restart(tmp_path: Path) -> None:
    given = block(1)
    for first in (True, False):
        disk = DiskStore(tmp_path, CAPACITY, QUOTA)
        await disk.open()
        if first:
            assert await disk.put("a", given)
        found = await disk.get("a", given.key)
        assert found is not None
        assert found.is_intact
        assert (await disk.usage("a")).num_bytes == SIZE
        await disk.close()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no database", "header"])
async def test_a_damaged_file_is_a_miss_and_can_be_written_again(tmp_path: Path, damage: str) -> None:
    disk = DiskStore(tmp_path, CAPACITY, QUOTA)
    await disk.open()
    blocks = [block(number) for number in range(8)]
    for given in blocks:
        assert await disk.put("a", given)
    await disk.close()
    path = tmp_path / "blocks.sqlite"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        for at in range(100_000, len(content), 999):
            content[at] ^= 0xFF
    elif damage == "header":
        content[:100] = b"\0" * 100
    else:
        content = bytearray(b"not a database at all" * 9999)
    path.write_bytes(content)
    disk = DiskStore(tmp_path, CAPACITY, QUOTA)
    await disk.open()
    tiers = Tiers([disk], 0)
    for given in blocks:
        found = await tiers.get("a", given.key)
        assert found is None or bytes(found.data) == given.data
    for number in range(20, 24):
        await tiers.put("a", block(number))
    assert await tiers.put("a", block(30))
    found = await tiers.get("a", block(30).key)
    assert found is not None
    await tiers.close()
    aside = tmp_path / "damaged-blocks.sqlite"
    assert damage == "flipped" or aside.read_bytes()[:4096] == content[:4096]


async def test_one_damaged_file_is_kept_however_many_there_were(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "blocks.sqlite").write_bytes(b"no database %d" % number * 9999)
        disk = DiskStore(tmp_path, CAPACITY, QUOTA)
        await disk.open()
        assert await disk.put("a", block(number))
        await disk.close()
    names = set(os.listdir(tmp_path))
    assert names == {"blocks.sqlite", "damaged-blocks.sqlite"}
    assert (tmp_path / "damaged-blocks.sqlite").read_bytes().startswith(b"no database 2")


async def test_the_disk_keeps_within_its_bound(tmp_path: Path) -> None:
    disk = DiskStore(tmp_path, 4 << 20, 4 << 20)
    await disk.open()
    for number in range(200):
        await disk.put("a", block(number))
    await disk.close()
    assert _bytes_in(tmp_path) < 12 << 20


async def test_a_nearer_tier_takes_what_a_further_one_had(tmp_path: Path) -> None:
    disk = DiskStore(tmp_path, CAPACITY, QUOTA)
    await disk.open()
    memory = MemoryStore(CAPACITY, QUOTA)
    tiers = Tiers([memory, disk], 64 << 20)
    given = block(1)
    assert await tiers.put("a", given)
    await memory.clear("a")
    await eventually(lambda: disk.has("a", given.key))
    assert await tiers.num_leading("a", [given.key, block(2).key]) == 1
    assert await tiers.get("a", given.key) is not None
    assert await memory.has("a", given.key)
    await tiers.close()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
