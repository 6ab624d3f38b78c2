"""The engine's thread runs what it is told in order, hands over what comes of it, and never leaves anybody waiting."""

import asyncio
import threading
from collections import abc
from collections.abc import AsyncIterator

import pytest

from paceline.errors import UnavailableError
from services.engine.config import Device, EngineConfig
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.loading import Phase, Progress
from services.engine.model_runner import Result
from services.engine.outbox import NO_BELL, Outbox
from services.engine.readings import Reading, Readings
from services.engine.roots import Roots
from services.engine.scheduler import Registered, Work
from services.engine.sequence import Sequence
from support.driver import GREEDY, append

PROMPT = list(range(3, 40))


class Echo:
    """Emits every pick of its sequences as it comes, until they are long enough."""

    def __init__(self, engine: Engine, outbox: Outbox[int | BaseException]) -> None:
        self.engine = engine
        self.outbox = outbox
        self.num_picks = 0
        self.breaks = self.is_awaited = False
        self._open: dict[Sequence, tuple[abc.Callable[[int | BaseException], None], int]] = {}

    def open(self, sequence: Sequence, emit: abc.Callable[[int | BaseException], None], end: int) -> None:
        self._open[sequence] = emit, end
        self.engine.add(sequence)

    def prepare(self, now: float) -> None:
        pass

    def advance(self, results: list[Result]) -> None:
        if self.breaks:
            raise RuntimeError("broken on purpose")
        for result in results:
            emit, end = self._open[result.sequence]
            append(result.sequence, result.token_ids[-1])
            self.num_picks += 1
            self.outbox.put(emit, result.token_ids[-1])
            if len(result.sequence) == end:
                self.engine.remove(result.sequence)
                del self._open[result.sequence]

    def end(self, sequence: Sequence, error: Exception) -> None:
        emit, _ = self._open.pop(sequence)
        self.engine.remove(sequence)
        self.outbox.put(emit, error)

    def fail(self, error: BaseException) -> None:
        for emit, _ in self._open.values():
            self.outbox.put(emit, error)

    def readings(self) -> Readings:
        return {"picks": (Reading(self.num_picks),)}


def config(model: str) -> EngineConfig:
    return EngineConfig(model=model, device=Device.CPU, num_threads=1, num_blocks=64, block_size=4)


@pytest.fixture
async def loop(target_folder: str) -> AsyncIterator[EngineLoop[Echo]]:
    made = EngineLoop(config(target_folder), Echo)
    await made.ready()
    yield made
    await made.stop()


async def picks(loop: EngineLoop[Echo], count: int, roots: Roots | None = None) -> list[int]:
    """The tokens that follow PROMPT, as they are emitted."""
    events: asyncio.Queue[int | BaseException] = asyncio.Queue()
    sequence = Sequence(PROMPT, len(PROMPT), GREEDY, roots=roots or Roots())
    loop.submit(lambda role: role.open(sequence, events.put_nowait, len(PROMPT) + count))
    found = []
    for _ in range(count):
        event = await asyncio.wait_for(events.get(), 20)
        if isinstance(event, BaseException):
            raise event
        found.append(event)
    return found


async def test_events_come_in_order_and_on_the_event_loop(loop: EngineLoop[Echo]) -> None:
    alone = await picks(loop, 12)
    assert await asyncio.gather(*(picks(loop, 12) for _ in range(3))) == [alone] * 3


async def test_questions_are_answered_in_the_order_of_all_commands_on_the_thread(
    loop: EngineLoop[Echo],
) -> None:
    seen: list[int] = []
    for number in range(20):
        loop.submit(lambda _, number=number: seen.append(number))
    assert await loop.ask(lambda _: list(seen)) == list(range(20))
    assert await loop.ask(lambda _: threading.current_thread()) is not threading.current_thread()


async def test_an_error_in_a_question_is_the_askers_alone(loop: EngineLoop[Echo]) -> None:
    with pytest.raises(ZeroDivisionError):
        await loop.ask(lambda _: 1 // 0)
    assert len(await picks(loop, 3)) == 3


async def test_an_error_in_a_command_is_told_to_whom_it_concerns_and_nobody_else(loop: EngineLoop[Echo]) -> None:
    told: asyncio.Queue[Exception] = asyncio.Queue()
    loop.submit(lambda _: 1 // 0, told.put_nowait)
    loop.submit(lambda _: 1 // 0)
    assert isinstance(await asyncio.wait_for(told.get(), 20), ZeroDivisionError)
    assert len(await picks(loop, 3)) == 3


async def test_a_command_that_loses_blocks_ends_the_engine(loop: EngineLoop[Echo]) -> None:
    def lose(role: Echo) -> None:
        role.engine.pool.allocate()
        raise IndexError("half way")

    loop.submit(lose)
    with pytest.raises(RuntimeError, match="blocks"):
        await asyncio.wait_for(asyncio.shield(loop.stopped), 20)


@pytest.mark.parametrize("is_awaited", [True, False])
async def test_what_nobody_waits_for_is_delivered_once_the_next_step_computes(
    loop: EngineLoop[Echo], monkeypatch: pytest.MonkeyPatch, *, is_awaited: bool
) -> None:
    runner = await loop.ask(lambda role: role.engine.runner)
    run, begun, go = runner.run, asyncio.Event(), threading.Event()
    asyncio_loop = asyncio.get_running_loop()
    steps: list[int] = []

    def held(works: abc.Sequence[Work], bell: int) -> list[Result]:
        steps.append(bell)
        if len(steps) == 2:
            asyncio_loop.call_soon_threadsafe(begun.set)
            go.wait(20)
        return run(works, bell)

    monkeypatch.setattr(runner, "run", held)
    monkeypatch.setattr(loop._outbox, "flush", loop._outbox.flush if is_awaited else lambda: None)
    told: asyncio.Queue[int | BaseException] = asyncio.Queue()

    def begin(role: Echo) -> None:
        role.is_awaited = is_awaited
        role.open(Sequence(PROMPT, len(PROMPT), GREEDY), told.put_nowait, len(PROMPT) + 6)

    loop.submit(begin)
    await asyncio.wait_for(begun.wait(), 20)
    assert told.empty() is not is_awaited
    assert (steps[1] == NO_BELL) is is_awaited
    go.set()
    for _ in range(5):  # The last one is told when there is no further step, by a flush.
        assert isinstance(await asyncio.wait_for(told.get(), 20), int)


async def test_a_sequence_that_cannot_be_computed_ends_and_the_others_go_on(
    loop: EngineLoop[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await picks(loop, 6)
    runner = await loop.ask(lambda role: role.engine.runner)
    run = runner.run

    def broken(works: abc.Sequence[Work], bell: int) -> list[Result]:
        if any(work.sequence.token_ids[0] == 99 for work in works):
            raise IndexError("on purpose")
        return run(works, bell)

    monkeypatch.setattr(runner, "run", broken)
    told: asyncio.Queue[int | BaseException] = asyncio.Queue()
    others = [asyncio.create_task(picks(loop, 6)) for _ in range(3)]
    loop.submit(lambda role: role.open(Sequence([99, 5], 2, GREEDY), told.put_nowait, 10))
    assert isinstance(await asyncio.wait_for(told.get(), 20), IndexError)
    assert await asyncio.gather(*others) == [alone] * 3


async def test_readings_show_the_last_step_as_soon_as_nothing_is_to_do(loop: EngineLoop[Echo]) -> None:
    assert loop.readings["picks"] == (Reading(0),)
    await picks(loop, 5)
    async with asyncio.timeout(20):
        while loop.readings["picks"] != (Reading(5),):
            await loop.ask(lambda _: None)
    assert {r.attributes["state"]: r.value for r in loop.readings["kv_blocks"]} == {"used": 0, "available": 63}


async def test_readings_that_fail_end_nothing(loop: EngineLoop[Echo], caplog: pytest.LogCaptureFixture) -> None:
    def spoil(role: Echo) -> None:
        role.readings = lambda: {"picks": (Reading(1 // 0),)}  # type: ignore[method-assign]

    names = loop.readings.keys()
    await loop.ask(spoil)
    assert len(await picks(loop, 3)) == 3
    while "cannot be read" not in caplog.text:
        await asyncio.sleep(0.01)
    assert len(await picks(loop, 3)) == 3
    assert loop.readings.keys() == names
    assert caplog.text.count("cannot be read") == 1


async def test_blocks_that_may_be_kept_elsewhere_are_handed_over(target_folder: str) -> None:
    handed: list[Registered] = []
    loop = EngineLoop(config(target_folder), Echo, handed.extend)
    await loop.ready()
    await picks(loop, 4)
    await picks(loop, 4, Roots(b"own", label="mine"))
    await loop.ask(lambda _: None)
    await loop.stop()
    assert [label for label, _ in handed] == ["mine"] * ((len(PROMPT) + 3) // 4)
    assert len({digest for _, digest in handed}) == len(handed)


async def test_there_are_no_facts_before_the_engine_is_there(target_folder: str) -> None:
    loop = EngineLoop(config(target_folder), Echo)
    with pytest.raises(UnavailableError):
        _ = loop.facts
    early = asyncio.create_task(loop.ask(lambda role: role.engine.facts))
    assert await loop.ready() is loop.facts is await early
    assert loop.progress == Progress(Phase.READY, 1.0)
    await loop.stop()


async def test_what_cannot_be_loaded_is_said_to_all_who_wait(target_folder: str) -> None:
    loop = EngineLoop(config(target_folder + "/nothing"), Echo)
    with pytest.raises(Exception, match="nothing"):
        await asyncio.wait_for(loop.ready(), 20)
    with pytest.raises(Exception, match="nothing"):
        _ = [progress async for progress in loop.watch_loading()]
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(loop.ask(lambda role: role.engine), 20)
    await asyncio.wait_for(loop.stop(), 20)


async def test_when_the_engine_breaks_nobody_is_left_waiting(target_folder: str) -> None:
    loop = EngineLoop(config(target_folder), Echo)
    await loop.ready()
    loop.submit(lambda role: setattr(role, "breaks", True))
    with pytest.raises(RuntimeError, match="on purpose"):
        await picks(loop, 1)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(loop.ask(lambda role: role.num_picks), 20)
    with pytest.raises(RuntimeError, match="on purpose"):
        await loop.stopped


async def test_who_asks_an_engine_that_is_told_to_stop_is_told_so(loop: EngineLoop[Echo]) -> None:
    stopping = asyncio.create_task(loop.stop())
    await asyncio.wait([stopping])
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(loop.ask(lambda role: role.num_picks), 20)
