"""Which replica a request is given: by uses, by what it has, and by whether it suits."""

import asyncio

import pytest

from gateway.model.attempts import LostError, NoneSuitsError
from gateway.model.replicas import Replicas
from paceline.errors import UnavailableError
from support.replicas import Service, error, pool, started


async def test_the_one_with_the_fewest_uses_is_chosen_then_the_one_that_had_the_adapter() -> None:
    replicas = await started(False, False, False)
    chosen = [await replicas.do(affinity="x") for _ in range(3)]
    assert len(set(chosen)) == 1
    attempts = replicas.attempts(1.0, affinity="x")
    async with attempts.another() as first:
        async with replicas.attempts(1.0, affinity="x").another() as second:
            assert first.client.target == chosen[0] != second.client.target
            async with replicas.attempts(1.0).another() as third:
                assert len({first.client, second.client, third.client}) == 3


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
