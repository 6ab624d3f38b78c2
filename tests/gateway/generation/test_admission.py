"""Places: bounded, queued by priority, and never lost."""

import asyncio

import pytest

from gateway.generation.admission import Admission
from paceline.errors import ResourceExhaustedError


async def _hold(admission: Admission, priority: int, order: list[int], leave: asyncio.Event) -> None:
    async with admission.place(priority):
        order.append(priority)
        await leave.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_larger_priority_goes_first_then_order_of_arrival() -> None:
    admission = Admission(1, 10)
    order: list[int] = []
    leave = asyncio.Event()
    leave.set()
    async with admission.place(0):
        tasks = [asyncio.create_task(_hold(admission, priority, order, leave)) for priority in (0, 5, 1, 5)]
        await _settle()
        assert admission.queued == 4
    await asyncio.gather(*tasks)
    assert order == [5, 5, 1, 0]
    assert admission.active == admission.queued == 0


async def test_what_is_over_the_queue_is_refused_at_once() -> None:
    admission = Admission(1, 2)
    leave = asyncio.Event()
    tasks = [asyncio.create_task(_hold(admission, 0, [], leave)) for _ in range(3)]
    await _settle()
    with pytest.raises(ResourceExhaustedError) as caught:
        async with admission.place(0):
            pass
    assert caught.value.retry_after_seconds > 0
    leave.set()
    await asyncio.gather(*tasks)
    assert admission.active == 0


async def test_a_cancelled_wait_gives_its_place_on() -> None:
    admission = Admission(1, 10)
    order: list[int] = []
    leave = asyncio.Event()
    first = asyncio.create_task(_hold(admission, 9, order, leave))
    await _settle()
    waiting = [asyncio.create_task(_hold(admission, priority, order, leave)) for priority in (3, 2, 1)]
    await _settle()
    waiting[0].cancel()
    leave.set()
    await asyncio.gather(first, *waiting[1:])
    assert order == [9, 2, 1]
    assert admission.active == 0


async def test_a_wait_cancelled_in_the_moment_of_its_turn_loses_no_place() -> None:
    admission = Admission(1, 10)
    leave = asyncio.Event()
    holder = asyncio.create_task(_hold(admission, 0, [], leave))
    await _settle()
    waiting = asyncio.create_task(_hold(admission, 0, [], leave))
    await _settle()
    leave.set()
    await holder
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert admission.active == 0
    async with admission.place(0):
        assert admission.active == 1


async def test_cancelled_waits_leave_nothing_behind() -> None:
    admission = Admission(1, 10)
    leave = asyncio.Event()
    holder = asyncio.create_task(_hold(admission, 0, [], leave))
    await _settle()
    for _ in range(100):
        waiting = [asyncio.create_task(_hold(admission, 0, [], leave)) for _ in range(10)]
        await _settle()
        assert not admission.will_wait
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert admission.queued == 0
    assert admission.will_wait
    assert not admission._queue
    leave.set()
    await holder


async def test_a_request_of_many_sequences_takes_as_many_places() -> None:
    admission = Admission(16, 10)
    order: list[int] = []
    leave = asyncio.Event()

    async def hold(num_sequences: int) -> None:
        async with admission.place(0, num_sequences):
            order.append(num_sequences)
            await leave.wait()

    tasks = [asyncio.create_task(hold(count)) for count in (10, 5, 4, 1)]
    await _settle()
    assert order == [10, 5], "four do not fit, and nobody passes them"
    assert (admission.active, admission.queued) == (15, 2)
    leave.set()
    await asyncio.gather(*tasks)
    assert order == [10, 5, 4, 1]
    assert admission.active == 0


async def test_a_request_of_more_sequences_than_there_are_places_is_served_alone() -> None:
    admission = Admission(4, 10)
    async with admission.place(0, 16):
        assert admission.is_full
    assert admission.active == 0


async def test_a_wait_that_is_cancelled_in_the_moment_of_its_turn_loses_no_place() -> None:
    admission = Admission(1, 10)
    leave = asyncio.Event()
    first = asyncio.create_task(_hold(admission, 0, [], leave))
    await _settle()
    waiting = asyncio.create_task(_hold(admission, 0, [], leave))
    await _settle()
    leave.set()
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    assert first.exception() is None
    assert admission.active == admission.queued == 0


async def test_one_that_is_cancelled_before_it_has_run_again_is_passed_over() -> None:
    admission = Admission(1, 10)
    order: list[int] = []
    leave = asyncio.Event()
    waiting: list[asyncio.Task[None]] = []

    async def first() -> None:
        async with admission.place(0):
            await leave.wait()
            waiting[0].cancel()

    holder = asyncio.create_task(first())
    await _settle()
    waiting += [asyncio.create_task(_hold(admission, priority, order, leave)) for priority in (5, 1)]
    await _settle()
    leave.set()
    await asyncio.gather(holder, *waiting, return_exceptions=True)
    assert holder.exception() is None
    assert order == [1]
    assert admission.active == admission.queued == 0
