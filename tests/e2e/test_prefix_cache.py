"""A prompt seen before is not computed again, whichever process died meanwhile, and no token changes."""

import random
from pathlib import Path
from typing import Any

import pytest

from paceline import UnauthenticatedError
from support.cached import CachedSystem
from support.redis_server import running_redis
from support.system import Reply, start_system

BLOCK = 16
PREFIX = random.Random(1).choices(range(3, 250), k=10 * BLOCK)


def prompt(number: int, length: int = 20) -> list[int]:
    """The prefix that all share, then tokens of its own."""
    return PREFIX + random.Random(100 + number).choices(range(3, 250), k=length)


async def without_cache(target: str, prompts: list[list[int]], **options: Any) -> list[Reply]:
    """What a system without a cache says."""
    async with start_system(target) as system:
        return [await system.generate(ids, **options) for ids in prompts]


async def test_a_restarted_verifier_fetches_what_was_computed(target_folder: str) -> None:
    options = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    expected = await without_cache(target_folder, [prompt(n) for n in range(3)], **options)
    async with CachedSystem(target_folder) as system:
        cold = await system.generate(prompt(0), **options)
        again = await system.generate(prompt(1), **options)
        await system.stored(12)
        await system.start_engines()
        restarted = await system.generate(prompt(2), **options)
    assert [r.token_ids for r in (cold, again, restarted)] == [r.token_ids for r in expected]
    assert [r.usage.num_cached_tokens for r in (cold, again, restarted)] == [0, 160, 160]


async def test_the_disk_serves_after_a_restart_of_everything(target_folder: str, tmp_path: Path) -> None:
    options = {"temperature": 1, "seed": 5, "max_tokens": 12, "ignore_eos": True}
    (expected,) = await without_cache(target_folder, [prompt(0)], **options)
    async with CachedSystem(target_folder, folder=tmp_path) as system:
        await system.generate(prompt(0), **options)
        await system.stored(11)
        await system.start_cache()
        await system.start_engines()
        reply = await system.generate(prompt(0), **options)
    assert reply.token_ids == expected.token_ids
    assert reply.usage.num_cached_tokens == 176


async def test_redis_serves_after_a_restart_of_everything(target_folder: str, tmp_path: Path) -> None:
    options = {"temperature": 1, "seed": 5, "max_tokens": 12, "ignore_eos": True}
    (expected,) = await without_cache(target_folder, [prompt(0)], **options)
    with running_redis(tmp_path) as server:
        system = CachedSystem(target_folder)
        system.cache_settings = {"redis_url": server.url}
        async with system:
            await system.generate(prompt(0), **options)
            await system.stored(11)
            await system.start_cache()
            await system.start_engines()
            reply = await system.generate(prompt(0), **options)
            async with system.client("a") as client:
                found = {tier.tier: tier for tier in (await client.cache_statistics()).tiers}
    assert reply.token_ids == expected.token_ids
    assert reply.usage.num_cached_tokens == 176
    assert found["redis"].num_hits == 11
    assert found["redis"].num_blocks >= 11


@pytest.mark.parametrize("seed", range(3))
async def test_no_token_changes_whatever_is_restarted_or_evicted(
    target_folder: str, draft_folder: str, tmp_path: Path, seed: int
) -> None:
    """Conversations that grow, prompts that share beginnings, few blocks, a small quota, restarts in between."""
    rng = random.Random(seed)
    conversations = [prompt(n, 5) for n in range(4)]
    requests: list[tuple[list[int], dict[str, Any]]] = []
    for turn in range(16):
        ids = conversations[rng.randrange(4)]
        ids += [rng.randrange(3, 250) for _ in range(rng.randrange(1, 30))]
        sampled = {"temperature": rng.choice([0.0, 1.0]), "seed": turn, "max_tokens": rng.randrange(1, 12)}
        requests.append((list(ids), {**sampled, "ignore_eos": True}))
    async with start_system(target_folder) as system:
        expected = [(await system.generate(ids, **options)).token_ids for ids, options in requests]
    got, cached = [], 0
    system = CachedSystem(target_folder, draft_folder, folder=tmp_path, kv_bytes=1 << 20)
    system.cache_settings = {"quota_bytes": 1 << 20, "memory_bytes": 1 << 20, "disk_bytes": 2 << 20}
    async with system:
        for ids, options in requests:
            reply = await system.generate(ids, **options)
            got.append(reply.token_ids)
            cached += reply.usage.num_cached_tokens
            restart = rng.choice(["nothing", "nothing", "engines", "cache", "both"])
            if restart in ("cache", "both"):
                await system.start_cache()
            if restart != "nothing":
                await system.start_engines()
    assert got == expected
    assert cached > 0


async def test_the_draft_is_as_good_after_a_hit_as_cold(target_folder: str, draft_folder: str) -> None:
    """A draft without the prefix's KV would propose what nobody accepts."""
    options = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    for draft, least in ((target_folder, 1.0), (draft_folder, 0.0)):
        async with CachedSystem(target_folder, draft) as system:
            cold = await system.generate(prompt(0), **options)
            await system.stored(11)
            await system.start_engines()
            hit = await system.generate(prompt(0), **options)
        assert hit.token_ids == cold.token_ids
        assert hit.usage.num_cached_tokens > 0
        cold_rate, hit_rate = (r.usage.num_accepted_tokens / r.usage.num_drafted_tokens for r in (cold, hit))
        assert cold_rate >= least
        assert hit_rate >= max(least, cold_rate - 0.2)


async def test_nothing_crosses_tenants(target_folder: str) -> None:
    options = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
    async with CachedSystem(target_folder) as system:
        first = await system.generate(prompt(0), "a", **options)
        await system.stored(11, "a")
        for _ in range(2):
            other = await system.generate(prompt(0), "b", **options)
            assert other.token_ids == first.token_ids
            assert other.usage.num_cached_tokens == 0
            assert await system.num_stored("c") == 0
            await system.stored(11, "b")
            async with system.client("b") as client:
                found = await client.cache_statistics()
                assert [tier.num_hits for tier in found.tiers] == [0]
                await client.clear_cache()
            assert await system.num_stored("b") == 0
            assert await system.num_stored("a") >= 11
            await system.start_engines()
        assert (await system.generate(prompt(0), "a", **options)).usage.num_cached_tokens == 176


async def test_a_declared_prefix_is_shared_and_nothing_behind_it(target_folder: str) -> None:
    shared = "x" * 100
    options = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
    system = CachedSystem(target_folder)
    system.gateway_settings = {"public_prefixes": (shared,)}
    async with system:
        text = shared + "y" * 100
        await system.generate(text, "a", **options)
        assert (await system.generate(text, "b", **options)).usage.num_cached_tokens == 96
        await system.stored(6, "a")
        await system.start_engines()
        assert (await system.generate(text, "c", **options)).usage.num_cached_tokens == 96
        assert (await system.generate(text, "a", **options)).usage.num_cached_tokens == 192


async def test_without_a_caller_there_is_no_answer(target_folder: str) -> None:
    async with CachedSystem(target_folder) as system:
        with pytest.raises(UnauthenticatedError):
            await system.generate("hello", "")
