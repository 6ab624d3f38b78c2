"""Servers to keep blocks in."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.redis_server import RedisCluster, RedisServer, running_cluster, running_redis
from support.redis_servers import Servers


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(_cluster: RedisCluster) -> RedisCluster:
    """A cluster with nothing in it."""
    for node in _cluster.nodes:
        node.client.flushall()
    return _cluster


@pytest.fixture(params=["server", "cluster"])
async def servers(request: pytest.FixtureRequest) -> AsyncIterator[Servers]:
    """Once a server, once a cluster."""
    found: RedisServer | RedisCluster = request.getfixturevalue(f"redis_{request.param}")
    made = Servers(found.nodes if isinstance(found, RedisCluster) else [found], isinstance(found, RedisCluster))
    yield made
    for store in made.stores:
        await store.close()
