"""Whoever holds a token does with the cache what it was minted for."""

from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest

from services.common.channel import open_channel
from services.common.tokens import PUBLIC_NAMESPACE, TokenMint, new_signing_key, public_key
from services.prefix_cache.client import PrefixCacheClient
from services.prefix_cache.lifespan import prefix_cache_lifespan
from services.prefix_cache.settings import PrefixCacheSettings
from support.blocks import block
from support.served import SERVER, served

KEY = new_signing_key()
MINT = TokenMint(KEY, 60)
GIVEN = block(1)
CONTENT = [(GIVEN.key, GIVEN.data)]


@pytest.fixture
async def client() -> AsyncIterator[PrefixCacheClient]:
    settings = PrefixCacheSettings(token_keys=(public_key(KEY),), server=SERVER)
    async with served(prefix_cache_lifespan(settings)) as address:
        made = PrefixCacheClient(address, open_channel(address))
        yield made
        await made.close()


async def code(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_only_an_owner_looks_at_a_namespace_and_deletes_it(client: PrefixCacheClient) -> None:
    engines, owner = MINT.sequence_token("tenant/a"), MINT.owner_token("tenant/a")
    assert await client.store(engines, "tenant/a", CONTENT, 5) == 1
    assert await code(client.delete(engines, "tenant/a", 5)) == "UNAUTHENTICATED"
    assert await code(client.statistics(engines, "tenant/a", 5)) == "UNAUTHENTICATED"
    assert await code(client.store(owner, "tenant/a", CONTENT, 5)) == "UNAUTHENTICATED"
    assert await code(client.match(owner, "tenant/a", [GIVEN.key], 5)) == "UNAUTHENTICATED"
    assert (await client.statistics(owner, "tenant/a", 5)).tiers[0].num_blocks == 1
    assert await client.delete(owner, "tenant/a", 5) == 1


async def test_public_blocks_are_written_for_public_sequences_and_deleted_by_the_operator(
    client: PrefixCacheClient,
) -> None:
    private, public = MINT.sequence_token("tenant/a"), MINT.sequence_token("tenant/a", public=True)
    assert await code(client.store(private, PUBLIC_NAMESPACE, CONTENT, 5)) == "PERMISSION_DENIED"
    assert await code(client.match(private, PUBLIC_NAMESPACE, [GIVEN.key], 5)) == "PERMISSION_DENIED"
    assert await client.store(public, PUBLIC_NAMESPACE, CONTENT, 5) == 1
    for token in (private, public, MINT.owner_token("tenant/a")):
        assert await code(client.delete(token, PUBLIC_NAMESPACE, 5)) in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    assert await client.match(public, PUBLIC_NAMESPACE, [GIVEN.key], 5) == 1
    assert await client.delete(MINT.owner_token(PUBLIC_NAMESPACE), PUBLIC_NAMESPACE, 5) == 1
