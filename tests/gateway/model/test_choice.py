"""Which replica a request is given: by uses, by what it has, and by whether it suits."""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from gateway.model.affinity import Affinity
from gateway.model.attempts import LostError, NoneSuitsError
from gateway.model.replicas import Replicas
from paceline.errors import UnavailableError
from support.replicas import Pool, Service, error, pool, started


@asynccontextmanager
async def held(replicas: Pool, affinities: Sequence[Affinity]) -> AsyncIterator[dict[str, list[Affinity]]]:
    """Uses of replicas that all go on at once, by where they went."""
    chosen = defaultdict(list)
    async with AsyncExitStack() as stack:
        for affinity in affinities:
            use = await stack.enter_async_context(replicas.attempts(1.0, affinity=affinity).another())
            chosen[use.client.target].append(affinity)
        yield chosen


async def test_what_begins_as_nothing_else_goes_where_the_fewest_uses_are() -> None:
    replicas = await started(False, False, False)
    async with held(replicas, [Affinity()] * 6) as chosen:
        assert [len(group) for group in chosen.values()] == [2, 2, 2]


async def test_what_begins_alike_goes_to_one_replica_and_different_beginnings_to_all() -> None:
    replicas = await started(False, False, False)
    homes = {f"p{n}": {await replicas.do(affinity=Affinity(f"p{n}")) for _ in range(3)} for n in range(60)}
    assert all(len(home) == 1 for home in homes.values())
    assert Counter(target for home in homes.values() for target in home).most_common()[-1][1] > 10


@pytest.mark.parametrize(("num_replicas", "num_uses"), [(2, 1), (2, 9), (3, 30), (5, 100)])
async def test_no_replica_gets_more_than_its_share_of_one_beginning(num_replicas: int, num_uses: int) -> None:
    replicas = await started(*[False] * num_replicas)
    async with held(replicas, [Affinity("popular")] * num_uses) as chosen:
        most = max(map(len, chosen.values()))
        assert most <= math.ceil(1.25 * num_uses / num_replicas)
        assert sum(map(len, chosen.values())) == num_uses


async def test_a_replica_that_goes_takes_no_other_beginning_along_and_finds_its_own_again() -> None:
    replicas = await started(False, False, False, pause=0.01)
    keys = [Affinity(f"p{n}") for n in range(40)]
    before = [await replicas.do(affinity=key) for key in keys]
    replicas.services[1].fails = error()
    during = [await replicas.do(affinity=key) for key in keys]
    assert all(old == new for old, new in zip(before, during, strict=True) if old != "s1")
    assert {new for old, new in zip(before, during, strict=True) if old == "s1"} == {"s0", "s2"}
    replicas.services[1].fails = None
    async with asyncio.timeout(5):
        while [await replicas.do(affinity=key) for key in keys] != before:
            await asyncio.sleep(0.01)


async def test_an_adapter_is_loaded_at_one_replica_until_that_has_its_share() -> None:
    replicas = await started(False, False, False)
    chosen = {await replicas.do(affinity=Affinity(f"p{n}", "adapter")) for n in range(10)}
    assert len(chosen) == 1
    async with held(replicas, [Affinity(f"p{n}", "adapter") for n in range(9)]) as spread:
        assert len(spread) == 3
    loaded = [Affinity(f"p{n}", "adapter") for n in range(40)]
    homes = [await replicas.do(affinity=key) for key in loaded]
    assert set(homes) == {"s0", "s1", "s2"}, "where it is loaded everywhere prefixes decide"
    assert homes == [await replicas.do(affinity=key) for key in loaded]


def test_what_lost_its_replica_behind_a_proxy_asks_for_another() -> None:
    assert [Affinity("p").route(0), Affinity().route(3)] == ["p", ""]
    assert len({Affinity("p").route(number) for number in range(4)}) == 4


async def test_only_what_suits_is_used_and_what_does_not_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = await started(False, False)
    replicas.services[1].says = "b"
    assert await replicas.do(suits="a".__eq__) in ("s0", "s1")
    with pytest.raises(NoneSuitsError):
        await replicas.do(suits="b".__eq__)
    monkeypatch.setattr("gateway.model.replica._STALE_SECONDS", 0.0)
    with pytest.raises(NoneSuitsError):
        await replicas.do(suits="b".__eq__)
    await replicas.look()
    assert await replicas.do(suits="b".__eq__) == "s1"


async def test_what_is_away_may_come_back_as_what_is_wanted() -> None:
    replicas = await started(True, pause=0.01)
    with pytest.raises(UnavailableError):
        await replicas.do(suits="a".__eq__)
    replicas.services[0].fails, replicas.services[0].says = None, "b"
    with pytest.raises(NoneSuitsError):
        await replicas.do(suits="a".__eq__)


async def test_a_request_that_got_on_may_go_back() -> None:
    replicas = await started(False, pause=0.01)
    attempts = replicas.attempts(0.2)
    for _ in range(3):
        with pytest.raises(LostError):
            async with attempts.another() as use:
                use.worked()
                raise error()
        assert not attempts.has_another()


async def test_ready_waits_for_the_first_that_answers() -> None:
    replicas = pool(True, True, pause=0.01)
    waiting = asyncio.create_task(replicas.ready())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    replicas.services[1].fails = None
    await asyncio.wait_for(waiting, 5)


async def test_who_gives_up_waiting_for_what_a_replica_is_takes_nobody_with_him() -> None:
    answered = asyncio.Event()

    async def ask(service: Service) -> str:
        await answered.wait()
        return service.says

    (replica,) = Replicas("service", [Service("s", says="new")], ask)
    waiting = [asyncio.create_task(replica.renew()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    answered.set()
    await asyncio.wait_for(waiting[1], 10)
    assert replica.info == "new"
