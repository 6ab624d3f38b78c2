"""Events come in order, on the event loop, once the bell is rung or the outbox flushed, and a step rings the bell."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from services.engine.outbox import NO_BELL, Outbox, ring
from support.driver import add, make_engine
from support.tiny import save_tiny


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox[int]]:
    made = Outbox[int](asyncio.get_running_loop())
    yield made
    made.close()


async def test_what_is_held_comes_in_order_when_the_bell_is_rung(outbox: Outbox[int]) -> None:
    heard: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    def deliver(event: int) -> None:
        heard.put_nowait((event, threading.current_thread().name))

    assert outbox.bell == NO_BELL
    for event in range(3):
        outbox.put(deliver, event)
    for _ in range(5):
        await asyncio.sleep(0)
    assert heard.empty()
    await asyncio.to_thread(ring, outbox.bell)
    name = threading.current_thread().name
    assert [await heard.get() for _ in range(3)] == [(0, name), (1, name), (2, name)]
    outbox.told()
    assert outbox.bell == NO_BELL


async def test_a_flush_delivers_what_is_held_before_it(outbox: Outbox[int]) -> None:
    heard: asyncio.Queue[int] = asyncio.Queue()
    outbox.put(heard.put_nowait, 1)
    outbox.put(heard.put_nowait, 2)
    outbox.flush()
    assert [await heard.get(), await heard.get()] == [1, 2]


async def test_a_bell_that_nobody_hears_for_long_holds_nobody_up(outbox: Outbox[int]) -> None:
    heard: list[int] = []
    outbox.put(heard.append, 1)
    for _ in range(1 << 17):  # More than a pipe takes.
        ring(outbox.bell)
    while not heard:
        await asyncio.sleep(0)
    outbox.put(heard.append, 2)
    ring(outbox.bell)
    while len(heard) < 2:
        await asyncio.sleep(0)


async def test_an_error_in_a_delivery_keeps_no_other_back(outbox: Outbox[int]) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    heard: asyncio.Queue[int] = asyncio.Queue()

    def fail(_event: int) -> None:
        raise ValueError("on purpose")

    outbox.put(fail, 1)
    outbox.put(heard.put_nowait, 2)
    outbox.flush()
    await asyncio.sleep(0)
    assert await heard.get() == 2
    assert [type(error) for error in told] == [ValueError]


async def test_closing_delivers_the_rest(outbox: Outbox[int]) -> None:
    other = Outbox[int](asyncio.get_running_loop())
    heard: list[int] = []
    other.put(heard.append, 1)
    other.close()
    assert heard == [1]


def save_gptj(folder: Path) -> str:
    config = AutoConfig.for_model("gptj", vocab_size=512, n_embd=64, n_layer=1, n_head=2, n_positions=64, rotary_dim=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("save", [save_tiny, lambda folder: save_tiny(folder, hidden_act="gelu"), save_gptj])
def test_every_forward_rings(tmp_path: Path, save: Callable[[Path], str]) -> None:
    engine = make_engine(save(tmp_path))
    ear, bell = os.pipe()
    os.set_blocking(ear, False)
    add(engine, [1, 2, 3])
    engine.step()
    with pytest.raises(BlockingIOError):
        os.read(ear, 1)
    add(engine, [4, 5, 6])
    engine.step(bell)
    assert len(os.read(ear, 100)) == 1
    os.close(ear)
    os.close(bell)
