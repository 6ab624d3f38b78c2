"""The tier that machines share, on real servers: what it counts, and what others did to what it keeps."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from services.prefix_cache.block import Block
from services.prefix_cache.disk_store import DiskStore
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.tiers import Tiers
from support.blocks import QUOTA, SIZE, block
from support.redis_servers import UNACCOUNTED_SECONDS, Servers, eventually

ODD_NAMES = ["a", "A", "a b", "a:b", "{a}", "a}b{", "{}", "*", "a*", "\0", "a\r\nDEL b", "Größe 🙂", "%s", "x" * 256]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda value: value[:99] + bytes([value[99] ^ 1]) + value[100:],
    "the checksum": lambda value: bytes(8) + value[8:],
    "half is gone": lambda value: value[: len(value) // 2],
    "more behind it": lambda value: value + b"more",
    "no data": lambda value: value[:8],
    "less than a checksum": lambda value: value[:3],
    "nothing": lambda value: b"",
}


async def test_what_was_read_last_goes_last(servers: Servers) -> None:
    store = servers.store()
    for number in range(10):
        assert await store.put("a", block(number))
    assert await store.get("a", block(0).key) is not None
    assert await store.put("a", block(1))
    assert await store.put("a", block(10))
    assert [await store.has("a", block(number).key) for number in range(11)] == [True, True, False] + [True] * 8
    assert (await store.usage("a")).num_evictions == 1
    await servers.check_integrity("a")


async def test_caches_that_share_a_server_count_a_block_once(servers: Servers) -> None:
    stores = [servers.store(), servers.store()]
    assert all(await asyncio.gather(*(store.put("a", block(number)) for number in range(8) for store in stores)))
    for store in stores:
        usage = await store.usage("a")
        assert (usage.num_blocks, usage.num_bytes) == (8, 8 * SIZE)
    await servers.check_integrity("a")


async def test_caches_that_share_a_server_keep_within_one_quota(servers: Servers) -> None:
    stores = [servers.store() for _ in range(3)]
    assert await stores[0].put("b", block(0))
    assert all(await asyncio.gather(*(stores[n % 3].put("a", block(n, SIZE - 99 * n)) for n in range(60))))
    assert (await stores[0].usage("a")).num_bytes <= QUOTA
    assert sum([(await store.usage("a")).num_evictions for store in stores]) >= 45
    assert await stores[1].has("b", block(0).key)
    await servers.check_integrity("a")


async def test_a_smaller_quota_holds_from_the_next_block_on(servers: Servers) -> None:
    for number in range(10):
        assert await servers.store().put("a", block(number))
    small = servers.store(quota_bytes=3 * SIZE)
    assert await small.put("a", block(10))
    assert (await small.usage("a")).num_blocks == 3
    await servers.check_integrity("a")


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_value_that_was_changed_is_a_miss_dropped_and_counted(servers: Servers, damage: str) -> None:
    store = servers.store()
    tiers = Tiers([store], 0)
    for number in range(2):
        assert await store.put("a", block(number))
    node, name = servers.find(block(1))
    node.client.set(name, DAMAGES[damage](node.client.get(name)))
    assert await tiers.get("a", block(1).key) is None
    assert tiers.num_misses("a") == 1
    usage = await store.usage("a")
    assert (usage.num_blocks, usage.num_bytes, usage.num_corrupt) == (1, SIZE, 1)
    assert not await store.has("a", block(1).key)
    assert await store.put("a", block(1))
    assert await tiers.get("a", block(1).key) == block(1)
    await servers.check_integrity("a")


async def test_names_of_namespaces_mean_nothing(servers: Servers) -> None:
    store = servers.store()
    for number, name in enumerate(ODD_NAMES):
        assert await store.put(name, block(number))
    for number, name in enumerate(ODD_NAMES):
        held = [await store.has(name, block(other).key) for other in range(len(ODD_NAMES))]
        assert held == [other == number for other in range(len(ODD_NAMES))]
        await servers.check_integrity(name)
    for left, name in reversed(list(enumerate(ODD_NAMES))):
        assert await store.clear(name) == 1
        assert len(servers.names("paceline:block:*")) == left


async def test_nothing_is_left_of_a_namespace_that_was_cleared(servers: Servers) -> None:
    store = servers.store()
    for number in range(200):
        assert await store.put("a", block(number, 100))
    assert await store.clear("a") == 200
    assert await store.clear("a") == 0
    assert servers.names() == set()


async def test_a_block_without_its_account_goes_by_itself(servers: Servers) -> None:
    store = servers.store()
    assert await store.put("a", block(0))
    servers.do("ACL", "SETUSER", "default", "-eval")
    assert not await store.put("a", block(1))
    node, name = servers.find(block(1))
    assert 0 < node.client.ttl(name) <= UNACCOUNTED_SECONDS
    assert await store.get("a", block(0).key) == block(0)
    servers.do("ACL", "SETUSER", "default", "+eval")
    assert (await store.usage("a")).num_blocks == 1
    await eventually(partial(store.put, "a", block(1)))
    await servers.check_integrity("a")


@pytest.mark.parametrize("lost", ["order", "sizes", "*"])
async def test_what_is_used_is_counted_again_when_accounts_were_lost(servers: Servers, lost: str) -> None:
    """As when the node of a cluster that had them is replaced."""
    store = servers.store()
    for number in range(5):
        assert await store.put("a", block(number))
    for node in servers.nodes:
        for name in node.client.keys(f"paceline:{{*}}:{lost}"):
            node.client.delete(name)
    for number in range(5, 30):
        assert await store.put("a", block(number))
    for number in range(5):
        assert await store.get("a", block(number).key) == block(number)
    usage = await store.usage("a")
    assert (usage.num_blocks, usage.num_bytes) == (10, QUOTA)
    await servers.check_integrity("a")


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to a cluster takes as long as the machine lets it: slowness is not what is tested here."""
    monkeypatch.setattr("services.prefix_cache.tier._MAX_SECONDS", 30.0)


@pytest.mark.usefixtures("unhurried")
async def test_nearer_tiers_take_what_the_shared_one_has(servers: Servers, tmp_path: Path) -> None:
    given = block(1)
    first = Tiers([MemoryStore(QUOTA, QUOTA), servers.store()], 10 * SIZE)
    assert await first.put("a", given)
    await first.close()
    memory, disk = MemoryStore(QUOTA, QUOTA), DiskStore(tmp_path, QUOTA, QUOTA)
    await disk.open()
    tiers = Tiers([memory, disk, servers.store()], 10 * SIZE)
    assert await tiers.num_leading("a", [given.key, block(2).key]) == 1
    assert await tiers.get("a", given.key) == given
    assert await memory.get("a", given.key) == given
    found = await disk.get("a", given.key)
    assert found == Block(given.key, given.data, given.checksum)
    await tiers.close()
