"""Servers to share, and the stores that use them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from services.prefix_cache.block import Block
from services.prefix_cache.redis_store import RedisStore
from support.blocks import QUOTA
from support.redis_server import RedisCluster, RedisServer

UNACCOUNTED_SECONDS = 60


@dataclass
class Servers:
    """One server or a cluster, and the stores that use it."""

    nodes: list[RedisServer]
    is_cluster: bool
    stores: list[RedisStore] = field(default_factory=list)

    def store(self, *, quota_bytes: int = QUOTA, timeout_seconds: float = 30, **more: Any) -> RedisStore:
        """One more cache."""
        bounds = {"quota_bytes": quota_bytes, "timeout_seconds": timeout_seconds, **more}
        made = RedisStore(self.nodes[0].url, cluster=self.is_cluster, **bounds)
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


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once it holds: a store leaves a server that failed alone for a while."""
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)
