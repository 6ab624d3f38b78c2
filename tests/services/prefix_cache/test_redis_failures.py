"""The tier that machines share, on real servers that fill up, die and hang."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from paceline.errors import UnavailableError
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.redis_store import RedisStore
from services.prefix_cache.tiers import Tiers
from support.blocks import QUOTA, SIZE, block
from support.redis_server import RedisCluster
from support.redis_servers import Servers, eventually

CALLS: dict[str, Callable[[RedisStore], Awaitable[Any]]] = {
    "get": lambda store: store.get("a", block(1).key),
    "has": lambda store: store.has("a", block(1).key),
    "put": lambda store: store.put("a", block(2)),
    "drop": lambda store: store.drop("a", block(1).key),
    "clear": lambda store: store.clear("a"),
    "usage": lambda store: store.usage("a"),
}


async def test_a_full_server_keeps_no_more_and_gives_out_what_it_has(servers: Servers) -> None:
    store = servers.store()
    for number in range(3):
        assert await store.put("a", block(number))
    servers.do("CONFIG", "SET", "maxmemory", "1")
    try:
        for number in range(3, 6):
            assert not await store.put("a", block(number))
            assert await store.get("a", block(0).key) == block(0)
        await store.drop("a", block(1).key)
        usage = await store.usage("a")
        assert (usage.num_blocks, usage.num_bytes) == (2, 2 * SIZE)
        await servers.check_integrity("a")
        assert await store.clear("a") == 2
    finally:
        servers.do("CONFIG", "SET", "maxmemory", "0")
    await eventually(partial(store.put, "a", block(3)))
    await servers.check_integrity("a")


async def test_a_server_that_dies_is_missed_until_it_is_back(servers: Servers) -> None:
    store = servers.store(timeout_seconds=5)
    for number in range(10):
        assert await store.put("a", block(number))
    calls = [asyncio.ensure_future(call(store)) for call in CALLS.values() for _ in range(5)]
    await asyncio.sleep(0)
    for node in servers.nodes:
        node.kill()
    await asyncio.gather(*calls)
    away = servers.store(timeout_seconds=5)
    for other in (store, away):
        for number in range(10):
            assert await other.get("a", block(number).key) is None
            assert not await other.has("a", block(number).key)
            assert not await other.put("a", block(number))
        assert await other.clear("a") is None
    servers.start()
    for other in (store, away):
        await eventually(partial(other.put, "a", block(1)))
        assert await other.get("a", block(1).key) == block(1)
    usage = await store.usage("a")
    assert (usage.num_blocks, usage.num_bytes) == (1, SIZE)
    await servers.check_integrity("a")


async def test_what_may_be_left_on_a_server_that_is_away_is_not_said_to_be_deleted(servers: Servers) -> None:
    memory = MemoryStore(QUOTA, QUOTA)
    tiers = Tiers([memory, servers.store(timeout_seconds=5)], QUOTA)
    assert await tiers.put("a", block(1))
    for node in servers.nodes:
        node.kill()
    with pytest.raises(UnavailableError, match="redis"):
        await tiers.clear("a")
    assert not await memory.has("a", block(1).key)
    servers.start()
    await eventually(partial(_clears, tiers))
    await tiers.close()


async def _clears(tiers: Tiers) -> bool:
    try:
        await tiers.clear("a")
    except UnavailableError:
        return False
    return True


async def test_a_server_that_dies_again_and_again_breaks_no_call(servers: Servers) -> None:
    """Calls miss; none raises, and none gets another's answer."""
    stores = [servers.store(timeout_seconds=5) for _ in range(4)]
    over = asyncio.Event()

    async def use(store: RedisStore, number: int) -> None:
        while not over.is_set():
            await store.put("a", block(number))
            found = await store.get("a", block(number).key)
            assert found is None or found == block(number)
            await asyncio.sleep(0)

    users = [asyncio.create_task(use(store, number)) for store in stores for number in range(8)]

    async def misses() -> bool:
        return not await stores[0].has("a", block(0).key)

    for _ in range(2):
        await eventually(lambda: stores[0].has("a", block(0).key))
        servers.nodes[-1].kill()
        await eventually(misses)
        servers.start()
    over.set()
    await asyncio.gather(*users)


async def test_a_hung_server_holds_nobody_up(servers: Servers) -> None:
    """Neither one call nor many, of stores that were connected and of stores that were not."""
    connected = [servers.store(timeout_seconds=0.2) for _ in CALLS]
    new = [servers.store(timeout_seconds=0.2) for _ in CALLS]
    for store in connected:
        await eventually(partial(store.put, "a", block(1)))
    with ExitStack() as stack:
        for node in servers.nodes:
            stack.enter_context(node.held())
        calls = [(name, CALLS[name](store)) for name, store in zip([*CALLS, *CALLS], connected + new, strict=True)]
        calls += [("get", connected[0].get("a", block(1).key)) for _ in range(20)]
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(call for _, call in calls))
    assert not any(answer for (name, _), answer in zip(calls, answers, strict=True) if name != "usage")
    for store in connected + new:
        await eventually(partial(store.put, "a", block(3)))
        assert await store.get("a", block(3).key) == block(3)


async def test_a_hung_server_does_not_hold_up_what_nearer_tiers_have(servers: Servers) -> None:
    """Callers give up after a quarter of a second, and would leave the whole cache alone for it."""
    store, loop = servers.store(timeout_seconds=1), asyncio.get_running_loop()
    tiers = Tiers([MemoryStore(QUOTA, QUOTA), store], 0)
    for number in range(3):
        assert await tiers.put("a", block(number))
    await eventually(partial(store.put, "a", block(3)))
    keys = [block(number).key for number in range(4)]
    assert await tiers.num_leading("a", keys) == 4
    with ExitStack() as stack:
        for node in servers.nodes:
            stack.enter_context(node.held())
        for _ in range(3):
            end = loop.time() + 0.25
            assert await tiers.num_leading("a", keys, lambda end=end: end - loop.time()) == 3  # type: ignore[misc]
            assert loop.time() < end
            assert [found async for found in tiers.blocks("a", keys)] == [block(number) for number in range(3)]


async def test_a_call_that_is_given_up_leaves_no_answer_to_the_next(servers: Servers) -> None:
    store = servers.store()
    for number in range(8):
        assert await store.put("a", block(number))
    for given_up in range(40):
        calls = [asyncio.create_task(store.get("a", block(number).key)) for number in range(8)]
        for _ in range(given_up):
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert found[1::2] == [block(number) for number in range(1, 8, 2)]
    assert [await store.get("a", block(number).key) for number in range(8)] == [block(number) for number in range(8)]
    await servers.check_integrity("a")


async def test_many_calls_at_once_are_no_failure(servers: Servers) -> None:
    store = servers.store()
    assert await store.put("a", block(0))
    found = await asyncio.gather(*(store.get("a", block(0).key) for _ in range(300)))
    assert found == [block(0)] * 300


async def test_what_a_hung_cluster_node_does_not_have_is_still_there(redis_cluster: RedisCluster) -> None:
    servers = Servers(redis_cluster.nodes, True)
    store = servers.store(timeout_seconds=1)
    for number in range(8):
        assert await store.put("a", block(number))

    async def all_but_some_are_there() -> bool:
        found = [await store.has("a", block(number).key) for number in range(8)]
        return 0 < sum(found) < 8

    with redis_cluster.nodes[0].held():
        await eventually(all_but_some_are_there)
    redis_cluster.wait()
    await eventually(lambda: store.put("a", block(9)))
    await store.close()


async def test_no_connection_outlives_a_store_that_lost_its_cluster(redis_cluster: RedisCluster) -> None:
    servers = Servers(redis_cluster.nodes, True)
    store = servers.store()
    for number in range(8):
        assert await store.put("a", block(number))
    *others, lost = servers.nodes

    async def only_the_test_is_connected() -> bool:
        return all(len(node.client.client_list()) == 1 for node in others)

    assert not await only_the_test_is_connected()
    lost.kill()
    try:
        assert not all([await store.get("a", block(number).key) for number in range(8)])
        await store.close()
        await eventually(only_the_test_is_connected)
    finally:
        servers.start()


@pytest.mark.parametrize("cluster", [False, True])
async def test_a_tier_that_was_never_there_is_a_miss(cluster: bool) -> None:
    away = RedisStore("redis://127.0.0.1:1", cluster=cluster, quota_bytes=QUOTA, timeout_seconds=5)
    tiers = Tiers([MemoryStore(SIZE, SIZE), away], 10 * SIZE)
    for number in range(3):
        assert await tiers.put("a", block(number))
    assert await tiers.get("a", block(0).key) is None
    assert await tiers.num_leading("a", [block(0).key]) == 0
    with pytest.raises(UnavailableError):
        await tiers.clear("a")
    assert await tiers.get("a", block(2).key) is None
    async with asyncio.timeout(20):
        await tiers.close()
