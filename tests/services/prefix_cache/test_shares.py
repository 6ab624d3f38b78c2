"""Whoever holds most gives way; nobody loses its share of a full room, and nobody who asks for it is kept out."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prefix_cache.block import Block
from services.prefix_cache.disk_store import DiskStore
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.shares import Held, Shares
from services.prefix_cache.store import Store
from support.blocks import SIZE, block
from support.redis_server import RedisServer
from support.redis_servers import Servers, eventually

ROOM = 20
"""Blocks that fill the stores of these tests."""


@pytest.fixture(params=["memory", "disk"])
async def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that two tenants have filled, each up to its quota."""
    if request.param == "memory":
        store: Store = MemoryStore(ROOM * SIZE, ROOM // 2 * SIZE)
    else:
        store = disk = DiskStore(tmp_path_factory.mktemp("disk"), ROOM * SIZE, ROOM // 2 * SIZE)
        await disk.open()
    for number in range(ROOM):
        assert await store.put("ab"[number % 2], block(number))
    return store


async def held(store: Store) -> list[int]:
    return [(await store.usage(name)).num_blocks for name in "abc"]


async def test_a_third_tenant_gets_its_share_of_what_two_have_filled(full: Store) -> None:
    for number in range(100, 140):
        assert await full.put("c", block(number))
    assert sorted(await held(full)) == [6, 7, 7]
    assert await full.has("c", block(139).key)
    for name in "abab":
        for number in range(200, 220):
            assert await full.put(name, block(number))
    assert sorted(await held(full)) == [6, 7, 7]
    await full.close()


async def test_what_a_tenant_has_below_its_share_stays(full: Store) -> None:
    for number in range(100, 105):
        assert await full.put("c", block(number))
    for number in range(200, 240):
        assert await full.put("ab"[number % 2], block(number))
    assert [await full.has("c", block(number).key) for number in range(100, 105)] == [True] * 5
    await full.close()


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 60)), max_size=300),
    st.integers(60, 300),
    st.integers(60, 300),
)
def test_no_more_than_the_room_is_held_and_only_those_above_their_share_give_way(
    puts: list[tuple[str, int]], capacity: int, quota: int
) -> None:
    shares, kept = Shares(capacity, quota), dict[str, list[int]]()
    for name, size in puts:
        if not shares.fits(size):
            continue
        while (giving := shares.gives_way(name, size)) is not None:
            if giving != name:
                tenants = len({name, *(other for other, sizes in kept.items() if sizes)})
                assert sum(kept[giving]) * tenants > capacity
            if not kept.get(giving):
                break
            shares.remove(giving, kept[giving].pop(0))
        else:
            kept.setdefault(name, []).append(size)
            shares.add(name, size)
        for other, sizes in kept.items():
            assert shares[other] == Held(len(sizes), sum(sizes))
        assert shares.num_bytes == sum(map(sum, kept.values())) <= capacity
        assert max(map(sum, kept.values()), default=0) <= quota
    assert len(shares) == sum(bool(sizes) for sizes in kept.values())


async def test_a_full_server_has_those_who_hold_most_give_way(redis_server: RedisServer) -> None:
    servers = Servers([redis_server], False)
    store = servers.store(quota_bytes=100 * SIZE)
    for number in range(30):
        assert await store.put("ab"[number % 2], block(number))
    used = int(redis_server.client.info("memory")["used_memory"])
    redis_server.client.config_set("maxmemory", used + SIZE // 2)
    for number in range(100, 108):
        await eventually(lambda number=number: store.put("c", block(number)))  # type: ignore[misc]
    counts = Counter({name: (await store.usage(name)).num_blocks for name in "abc"})
    assert counts["c"] == 8
    assert counts["a"] >= 8
    assert counts["b"] >= 8
    assert (await store.usage("a")).num_evictions + (await store.usage("b")).num_evictions >= 7
    for name in "abc":
        await servers.check_integrity(name)
    for name in "abc":
        await store.clear(name)
    assert servers.names() == set()
    await store.close()


async def test_an_idle_block_goes(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    now = 1000.0
    stores: list[Store] = [
        MemoryStore(ROOM * SIZE, ROOM * SIZE, 60, lambda: now),
        disk := DiskStore(tmp_path_factory.mktemp("disk"), ROOM * SIZE, ROOM * SIZE, 60, lambda: now),
    ]
    await disk.open()
    for store in stores:
        now = 1000.0
        for number in range(3):
            assert await store.put("a", block(number))
        now += 59
        assert await store.get("a", block(1).key) is not None
        await store.expire()
        assert (await store.usage("a")).num_blocks == 3
        now += 2
        await store.expire()
        assert [await store.has("a", block(number).key) for number in range(3)] == [False, True, False]
        now += 60
        await store.expire()
        assert (await store.usage("a")).num_bytes == 0
        await store.close()
    shared = Servers([redis_server], False).store(idle_seconds=7)
    assert await shared.put("a", block(1))
    assert {redis_server.client.ttl(name) for name in redis_server.client.keys("*")} <= {6, 7}
    await shared.close()


@pytest.mark.parametrize("number_of_tenants", [10_000])
async def test_nothing_grows_with_tenants_that_have_nothing(number_of_tenants: int) -> None:
    store = MemoryStore(ROOM * 100, ROOM * 100)
    for number in range(number_of_tenants):
        name = str(number)
        assert await store.put(name, Block(number.to_bytes(32, "little"), b"x" * 100, 0))
        await store.usage(name)
        await store.get(name, number.to_bytes(32, "little"))
    sizes = [len(value) for value in vars(store).values() if hasattr(value, "__len__")]
    assert max(sizes) <= 4096
    assert len(store._namespaces) <= ROOM
