"""One, two and three replicas, any of them dead: who is tried, how often, and who answers."""

import asyncio
import itertools
import logging
import time
from contextlib import suppress

import grpc
import pytest

from gateway.model.attempts import LostError
from gateway.model.replica import State
from gateway.model.retry_budget import RetryBudget
from paceline.errors import UnavailableError
from support.replicas import Pool, Service, error, pool, started

COMBINATIONS = [dead for count in (1, 2, 3) for dead in itertools.product([False, True], repeat=count)]
SOME_LIVE = [dead for dead in COMBINATIONS if not all(dead)]


@pytest.mark.parametrize("dead", SOME_LIVE)
async def test_what_was_never_there_is_asked_once_and_never_called(dead: tuple[bool, ...]) -> None:
    replicas = pool(*dead)
    for _ in range(5):
        assert not dead[int((await replicas.do())[1])]
    await asyncio.gather(*(replicas.do() for _ in range(20)))
    for service, is_dead in zip(replicas.services, dead, strict=True):
        assert service.asks == 1
        assert not (is_dead and service.calls)


@pytest.mark.parametrize("dead", SOME_LIVE)
async def test_what_dies_is_tried_once_over_all_requests(dead: tuple[bool, ...]) -> None:
    replicas = await started(*dead)
    began = time.monotonic()
    for _ in range(8):
        assert not dead[int((await replicas.do())[1])]
    assert time.monotonic() - began < 1.0, "requests go on at once"
    for service, is_dead in zip(replicas.services, dead, strict=True):
        assert not is_dead or service.calls <= 1
        assert service.asks == 1


@pytest.mark.parametrize("dead", SOME_LIVE)
async def test_each_of_many_requests_at_once_meets_a_newly_dead_one_once_at_most(dead: tuple[bool, ...]) -> None:
    replicas = await started(*dead)
    await asyncio.gather(*(replicas.do() for _ in range(30)))
    met = sum(service.calls for service in replicas.services if service.fails)
    assert met <= 30 * sum(dead)
    await asyncio.gather(*(replicas.do() for _ in range(30)))
    assert sum(service.calls for service in replicas.services if service.fails) == met


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_when_all_are_dead_it_is_said_and_each_was_tried_once(count: int) -> None:
    replicas = await started(*[True] * count)
    results = await asyncio.gather(*(replicas.do() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, UnavailableError) and result.retry_after_seconds for result in results)
    assert "no service could be reached (UNAVAILABLE: dead)" in str(results[0])
    asked = [service.asks for service in replicas.services]
    with pytest.raises(UnavailableError):
        await replicas.do()
    assert [service.asks for service in replicas.services] == asked == [1] * count
    assert all(service.calls <= 3 for service in replicas.services)


async def test_a_failure_is_told_once_however_many_meet_it(caplog: pytest.LogCaptureFixture) -> None:
    replicas = await started(True, False)
    with caplog.at_level(logging.INFO):
        await asyncio.gather(*(replicas.do() for _ in range(30)))
    assert [(record.levelname, record.getMessage().split(" (")[0]) for record in caplog.records] == [
        ("WARNING", "service s0 failed")
    ]


async def test_what_was_not_there_yet_is_no_cause_for_alarm(caplog: pytest.LogCaptureFixture) -> None:
    replicas = pool(True, True, pause=0.001)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            with pytest.raises(UnavailableError):
                await replicas.do()
    assert sorted((record.levelname, record.getMessage().split(" (")[0]) for record in caplog.records) == [
        ("INFO", "service s0 failed"),
        ("INFO", "service s1 failed"),
    ]


async def test_a_dead_one_is_tried_once_a_pause_whoever_asks() -> None:
    replicas = await started(True, False, pause=0.1)
    began = time.monotonic()
    while time.monotonic() - began < 0.55:
        await asyncio.gather(*(replicas.do() for _ in range(5)))
        await asyncio.sleep(0.005)
    first = replicas.services[0]
    assert first.calls <= 5
    assert 3 <= first.asks - 1 <= 6


async def test_what_comes_back_is_tried_by_one_request_at_a_time_until_it_works() -> None:
    replicas = await started(True, True, pause=0.02)
    with pytest.raises(UnavailableError):
        await replicas.do()
    first = replicas.services[0]
    first.fails, first.answer_when = None, asyncio.Event()
    first.calling.clear()
    before = first.calls
    waiting = [asyncio.create_task(replicas.do()) for _ in range(5)]
    await first.calling.wait()
    await asyncio.sleep(0.05)
    assert first.calls == before + 1
    first.answer_when.set()
    assert await asyncio.gather(*waiting) == ["s0"] * 5


async def test_a_trial_that_takes_long_keeps_nobody_else_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.model.replica._TRIAL_SECONDS", 0.05)
    replicas = await started(True, pause=0.01)
    with pytest.raises(UnavailableError):
        await replicas.do()
    (only,) = replicas.services
    only.fails, only.answer_when = None, asyncio.Event()
    before = only.calls
    waiting = [asyncio.create_task(replicas.do()) for _ in range(3)]
    async with asyncio.timeout(5):
        while only.calls < before + 3:
            await asyncio.sleep(0.01)
    only.answer_when.set()
    await asyncio.gather(*waiting)


async def test_a_trial_that_nobody_waits_for_any_more_leaves_room_for_another() -> None:
    replicas = await started(True, pause=0.01)
    with pytest.raises(UnavailableError):
        await replicas.do()
    (only,) = replicas.services
    only.fails, only.answer_when = None, asyncio.Event()
    only.calling.clear()
    trying = asyncio.create_task(replicas.do())
    await only.calling.wait()
    trying.cancel()
    only.answer_when.set()
    assert await replicas.do() == "s0"


@pytest.mark.parametrize("incarnation", ["2", "1", ""])
async def test_what_was_started_anew_has_nothing_of_what_it_had(incarnation: str) -> None:
    replicas = await started(False)
    (replica,) = replicas
    replica.adapters["a"], replica.wants_proposals = True, True
    replicas.services[0].incarnation = incarnation
    await replica.renew()
    is_another = incarnation == "2"
    assert (not replica.adapters, not replica.wants_proposals) == (is_another, is_another)


async def many_requests(seconds: float, other_works: bool) -> tuple[Pool, RetryBudget, list["asyncio.Task[None]"]]:
    """Sixty requests, half of them at each of two services; that the first is lost is known once it answers."""
    replicas = await started(False, False)
    gone, other = replicas.services
    gone.answer_when, other.answer_when = asyncio.Event(), asyncio.Event()
    budget = RetryBudget(replicas)

    async def request() -> None:
        attempts = replicas.attempts(seconds, budget=budget)
        while True:
            with suppress(LostError):
                async with attempts.another() as use:
                    await use.client.do()
                    if use.client is gone or not other_works:
                        raise LostError("gone")
                    use.worked()
                    return

    requests = [asyncio.create_task(request()) for _ in range(60)]
    while gone.calls + other.calls < len(requests):
        await asyncio.sleep(0.01)
    assert gone.calls == 30
    gone.answer_when.set()
    await asyncio.sleep(0.1)
    assert 30 + 10 <= other.calls <= 30 + 12, "ten, or a fifth of those that run there"
    other.answer_when.set()
    return replicas, budget, requests


async def test_of_the_many_that_lose_one_few_try_again_at_once() -> None:
    replicas, budget, requests = await many_requests(5, other_works=True)
    async with asyncio.timeout(5):
        await asyncio.gather(*requests)
    assert replicas.services[1].calls == 60
    assert [budget.take(replica) for replica in replicas] == [True, True]


async def test_who_waits_for_others_that_try_again_gives_up_when_none_is_left() -> None:
    _, _, requests = await many_requests(0.3, other_works=False)
    async with asyncio.timeout(2):
        results = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(result, UnavailableError) for result in results)


async def test_of_the_uses_that_one_failure_ends_only_the_first_counts() -> None:
    replicas = pool(False)
    await replicas.look()
    (replica,) = replicas
    begun = [replica.begin() for _ in range(4)]
    for use in begun:
        replica.failed(use, "gone")
    assert replica.num_failures == 1
    replica.worked(begun[0])
    assert replica.state is State.AWAY, "an old use says nothing about now"


async def test_what_a_service_refuses_is_passed_on_and_hurts_nobody() -> None:
    replicas = await started(False, False)
    for service in replicas.services:
        service.fails = error(grpc.StatusCode.NOT_FOUND, by_service=True)
    with pytest.raises(grpc.aio.AioRpcError):
        await replicas.do()
    assert sum(service.calls for service in replicas.services) == 1
    assert all(replica.state is State.LIVING for replica in replicas)


async def test_a_service_that_says_it_cannot_is_gone_around_and_stays_in_use() -> None:
    """Its own store may be away: that is no reason to keep other requests from it."""
    replicas = await started(False, False)
    replicas.services[0].fails = error(by_service=True)
    assert [await replicas.do() for _ in range(3)] == ["s1"] * 3
    assert all(replica.state is State.LIVING for replica in replicas)


@pytest.mark.parametrize("dead", SOME_LIVE)
@pytest.mark.parametrize("begins", [False, True])
async def test_an_upload_is_repeated_until_its_data_has_begun(dead: tuple[bool, ...], begins: bool) -> None:
    replicas = await started(*dead)
    num_lost = 0

    async def upload() -> None:
        has_begun = False

        async def send(service: Service) -> str:
            nonlocal has_begun
            has_begun = service.fails is None or begins
            return await service.do()

        assert not dead[int((await replicas.call(send, may_repeat=lambda: not has_begun))[1])]

    for _ in range(4):
        try:
            await upload()
        except UnavailableError as lost:
            assert "half way" in str(lost)
            num_lost += 1
    assert num_lost <= (sum(dead) if begins else 0)
    assert all(service.calls <= 1 for service in replicas.services if service.fails)


async def test_each_that_can_be_reached_answers_for_itself() -> None:
    replicas = await started(True, False, False)
    assert sorted(await replicas.call_each(Service.do)) == ["s1", "s2"]
    assert sorted(await replicas.call_each(Service.do)) == ["s1", "s2"]
    assert replicas.services[0].calls == 1
    with pytest.raises(UnavailableError):
        await (await started(True, True)).call_each(Service.do)
