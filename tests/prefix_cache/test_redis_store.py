"""The tier that machines share, on real servers that fill up, die, hang, forbid, and hold what nobody put there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefix_cache.blocks import QUOTA, SIZE, block
from redis_server import RedisCluster, RedisServer
from services.prefix_cache.block import Block
from services.prefix_cache.disk_store import DiskStore
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.redis_store import RedisStore
from services.prefix_cache.tiers import Tiers

UNACCOUNTED_SECONDS = 60
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
CALLS: dict[str, Callable[[RedisStore], Awaitable[Any]]] = {
    "get": lambda store: store.get("a", block(1).key),
    "has": lambda store: store.has("a", block(1).key),
    "put": lambda store: store.put("a", block(2)),
    "drop": lambda store: store.drop("a", block(1).key),
    "clear": lambda store: store.clear("a"),
    "usage": lambda store: store.usage("a"),
}


@dataclass
class Servers:
    """One server or a cluster, and the stores that use it."""

    nodes: list[RedisServer]
    is_cluster: bool
    stores: list[RedisStore] = field(default_factory=list)

    def store(self, *, quota_bytes: int = QUOTA, timeout_seconds: float = 30) -> RedisStore:
        """One more cache."""
        url = self.nodes[0].url
        made = RedisStore(url, cluster=self.is_cluster, quota_bytes=quota_bytes, timeout_seconds=timeout_seconds)
        self.stores.append(made)
        return made

    def names(self, pattern: str = "*") -> set[bytes]:
        """Names of what is there."""
        return {name for node in self.nodes for name in node.client.keys(pattern)}

    def do(self, *command: str) -> None:
        """Has every node do it."""
        for node in self.nodes:
            node.client.execute_command(*command)

    def find(self, given: Block) -> tuple[RedisServer, bytes]:
        """The node that a block is on, and its name there."""
        (found,) = [(node, name) for node in self.nodes for name in node.client.keys("*") if name.endswith(given.key)]
        return found

    def start(self) -> None:
        """Starts again what was killed; returns once it is whole."""
        for node in self.nodes:
            if not node.is_running:
                node.start()
        if self.is_cluster:
            RedisCluster(self.nodes).wait()

    async def check_integrity(self, namespace: str) -> None:
        """What is there is what is counted, and stays."""
        usage = await self.stores[0].usage(namespace)
        sizes, lives = [], []
        for node in self.nodes:
            for name in node.client.keys(f"paceline:block:{namespace.encode().hex()}:*"):
                sizes.append(node.client.strlen(name) - 8)
                lives.append(node.client.ttl(name))
        assert (usage.num_blocks, usage.num_bytes) == (len(sizes), sum(sizes))
        assert all(life > UNACCOUNTED_SECONDS for life in lives)


@pytest.fixture(params=["server", "cluster"])
async def servers(request: pytest.FixtureRequest) -> AsyncIterator[Servers]:
    """Once a server, once a cluster."""
    found: RedisServer | RedisCluster = request.getfixturevalue(f"redis_{request.param}")
    made = Servers(found.nodes if isinstance(found, RedisCluster) else [found], isinstance(found, RedisCluster))
    yield made
    for store in made.stores:
        await store.close()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once it holds: a store leaves a server that failed alone for a while."""
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)


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
    assert tiers.misses["a"] == 1
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
        assert await other.clear("a") == 0
    servers.start()
    for other in (store, away):
        await eventually(partial(other.put, "a", block(1)))
        assert await other.get("a", block(1).key) == block(1)
    usage = await store.usage("a")
    assert (usage.num_blocks, usage.num_bytes) == (1, SIZE)
    await servers.check_integrity("a")


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
    assert await tiers.clear("a") == 1
    async with asyncio.timeout(20):
        await tiers.close()


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
