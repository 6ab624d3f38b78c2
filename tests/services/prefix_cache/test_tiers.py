"""One tier that is slow or full is no failure of the others, and no tenant waits for what another writes."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.prefix_cache.block import Block
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.tiers import Tiers
from support.blocks import QUOTA, SIZE, block
from support.redis_servers import Servers


class SlowStore(MemoryStore):
    """A further tier that does nothing until it is let go."""

    name = "slow"

    def __init__(self, capacity_bytes: int = 100 * SIZE) -> None:
        super().__init__(capacity_bytes, capacity_bytes)
        self.goes = asyncio.Event()
        self.asked: list[str] = []

    async def find(self, namespace: str, keys: Sequence[bytes]) -> list[Block | None]:
        self.asked.append("find")
        await self.goes.wait()
        return await super().find(namespace, keys)

    async def which(self, namespace: str, keys: Sequence[bytes]) -> set[bytes]:
        self.asked.append("which")
        await self.goes.wait()
        return await super().which(namespace, keys)

    async def put(self, namespace: str, block: Block) -> bool:
        self.asked.append(f"put {namespace}")
        await self.goes.wait()
        return await super().put(namespace, block)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_clearing_waits_for_nobody_elses_writes() -> None:
    slow = SlowStore()
    tiers = Tiers([MemoryStore(QUOTA, QUOTA), slow], 100 * SIZE)
    assert await tiers.put("a", block(0))
    await settled()
    assert slow.asked == ["put a"]
    assert await tiers.put("b", block(1))
    async with asyncio.timeout(5):
        assert await tiers.clear("b") == 1
    slow.goes.set()
    await tiers.close()
    assert await slow.has("a", block(0).key)


async def test_what_was_pending_when_clearing_began_does_not_reappear() -> None:
    slow = SlowStore()
    memory = MemoryStore(QUOTA, QUOTA)
    tiers = Tiers([memory, slow], 100 * SIZE)
    for number in range(4):
        assert await tiers.put("a", block(number))
    await settled()
    clearing = asyncio.create_task(tiers.clear("a"))
    await settled()
    late = asyncio.create_task(tiers.put("a", block(9)))
    await settled()
    assert not clearing.done()
    slow.goes.set()
    await clearing
    assert await late
    await tiers.close()
    for number in range(4):
        assert not await memory.has("a", block(number).key)
        assert not await slow.has("a", block(number).key)
    assert await slow.has("a", block(9).key)


async def test_what_is_read_while_clearing_begins_does_not_reappear() -> None:
    """It would be kept in the nearer tier."""
    slow, memory = SlowStore(), MemoryStore(QUOTA, QUOTA)
    tiers = Tiers([memory, slow], 100 * SIZE)
    slow.goes.set()
    assert await slow.put("a", block(0))
    slow.goes.clear()
    reading = asyncio.create_task(tiers.get("a", block(0).key))
    await settled()
    clearing = asyncio.create_task(tiers.clear("a"))
    await settled()
    slow.goes.set()
    await asyncio.gather(reading, clearing)
    assert not await memory.has("a", block(0).key)
    assert await tiers.get("a", block(0).key) is None
    await tiers.close()


async def test_only_what_was_kept_counts_as_stored() -> None:
    """No tier has room for a block of this size, or the further one only."""
    small = MemoryStore(SIZE, SIZE)
    for further, kept in ((MemoryStore(SIZE, SIZE), False), (MemoryStore(9 * SIZE, 9 * SIZE), True)):
        tiers = Tiers([small, further], 100 * SIZE)
        assert await tiers.put("a", block(0, 2 * SIZE)) is kept
        assert await further.has("a", block(0, 2 * SIZE).key) is kept
        await tiers.close()


async def test_who_writes_little_is_not_left_out_for_who_writes_much() -> None:
    slow = SlowStore()
    tiers = Tiers([MemoryStore(100 * SIZE, 100 * SIZE), slow], 10 * SIZE)
    for number in range(30):
        assert await tiers.put("a", block(number))
        await settled()
    for number in range(30, 33):
        assert await tiers.put("b", block(number))
    slow.goes.set()
    await tiers.close()
    assert (await slow.usage("b")).num_blocks == 3
    assert (await slow.usage("a")).num_blocks == 7
    assert tiers.num_dropped == 23


async def test_a_slow_tier_is_skipped_and_the_others_answer() -> None:
    slow, last = SlowStore(), MemoryStore(100 * SIZE, 100 * SIZE)
    memory = MemoryStore(100 * SIZE, 100 * SIZE)
    tiers = Tiers([memory, slow, last], 100 * SIZE)
    keys = [block(number).key for number in range(6)]
    for number in range(6):
        assert await (memory if number < 3 else last).put("a", block(number))
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.25
    async with asyncio.timeout(5):
        assert await tiers.num_leading("a", keys, lambda: end - loop.time()) == 6
    assert loop.time() < end
    asked = len(slow.asked)
    found = [each async for each in tiers.blocks("a", keys)]
    assert found == [block(number) for number in range(6)]
    assert await tiers.num_leading("a", keys) == 6
    assert len(slow.asked) == asked
    slow.goes.set()
    await tiers.close()


async def test_a_caller_in_a_hurry_says_nothing_about_a_tier() -> None:
    slow = SlowStore()
    tiers = Tiers([MemoryStore(QUOTA, QUOTA), slow], 100 * SIZE)
    for _ in range(2):
        assert await tiers.num_leading("a", [block(0).key], lambda: 0.01) == 0
    assert slow.asked == ["which"] * 2
    slow.goes.set()
    await tiers.close()


@pytest.mark.parametrize("num_blocks", [1000])
async def test_a_long_prompt_takes_few_calls(
    servers: Servers, num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for blocks one by one takes a call each; here, one each for many, however busy the machine is."""
    monkeypatch.setattr("services.prefix_cache.tier._MAX_SECONDS", 60.0)
    store, calls = servers.store(quota_bytes=QUOTA), 0
    blocks = [block(number, 100) for number in range(num_blocks)]
    tiers = Tiers([MemoryStore(1, 1), store], 0)
    await asyncio.gather(*(store.put("a", given) for given in blocks))
    inner = store._do

    async def counted(work: Any, otherwise: Any) -> Any:
        nonlocal calls
        calls += 1
        return await inner(work, otherwise)

    store._do = counted  # type: ignore[method-assign]
    keys = [given.key for given in blocks]
    assert await tiers.num_leading("a", keys) == num_blocks
    assert calls == 1
    assert [found async for found in tiers.blocks("a", keys)] == blocks
    assert calls < num_blocks / 10
