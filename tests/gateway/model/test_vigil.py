"""A verifier that stands still loses its streams to another within moments; one that is only busy keeps them."""

import asyncio
import os
import signal
import time

import pytest

from support.fakes import INFO, FakeVerifier, continue_from, serve_fakes
from support.processes import Process
from support.system import StartGateway

NUM_TOKENS = 40
PROMPTS = [[65 + number, 70, 71] for number in range(12)]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks may be late here, where much else runs."""
    monkeypatch.setattr("gateway.model.vigil._LATE_SECONDS", 2.0)


@pytest.mark.usefixtures("late")
async def test_streams_leave_a_process_that_is_stopped_and_come_back_when_it_goes_on(
    start_gateway: StartGateway,
) -> None:
    processes = [Process(("support.fake_process", "verifier")) for _ in range(2)]
    await asyncio.gather(*(process.start() for process in processes))
    try:
        async with start_gateway([process.address for process in processes]) as system:
            await asyncio.gather(*(system.generate(prompt, max_tokens=1) for prompt in PROMPTS))
            requests = [asyncio.create_task(system.generate(prompt, max_tokens=NUM_TOKENS)) for prompt in PROMPTS]
            await asyncio.sleep(0.3)
            os.kill(processes[0].pid, signal.SIGSTOP)
            began = time.monotonic()
            replies = await asyncio.gather(*requests)
            assert time.monotonic() - began < 8  # Keepalive alone takes 12 s.
            assert [each.token_ids for each in replies] == [continue_from(prompt, NUM_TOKENS) for prompt in PROMPTS]
            os.kill(processes[0].pid, signal.SIGCONT)
            os.kill(processes[1].pid, signal.SIGSTOP)
            replies = await asyncio.gather(*(system.generate(prompt, max_tokens=9) for prompt in PROMPTS))
            assert [each.token_ids for each in replies] == [continue_from(prompt, 9) for prompt in PROMPTS]
    finally:
        for process in processes:
            await process.kill()


@pytest.mark.usefixtures("late")
async def test_one_whose_step_never_ends_is_left(start_gateway: StartGateway) -> None:
    hung = FakeVerifier(hang=True)
    async with serve_fakes(hung) as first, serve_fakes(FakeVerifier()) as second:
        async with start_gateway([first, second]) as system:
            requests = [asyncio.create_task(system.generate(prompt, max_tokens=9)) for prompt in PROMPTS]
            await hung.opened.wait()
            hung.step_seconds = 60.0
            replies = await asyncio.gather(*requests)
    assert [each.token_ids for each in replies] == [continue_from(prompt, 9) for prompt in PROMPTS]
    assert hung.opens


@pytest.mark.usefixtures("late")
async def test_one_that_is_busy_keeps_its_streams(start_gateway: StartGateway) -> None:
    """It answers: its step is long, as steps of large prompts are, or nothing is committed for want of room."""
    go = asyncio.Event()
    slow = type(INFO)()
    slow.CopyFrom(INFO)
    slow.step_times.add(num_rows=64, seconds=2.0)
    verifiers = [FakeVerifier(commit_when=go, step_seconds=seconds, info=slow) for seconds in (4.0, 20.0)]
    async with serve_fakes(verifiers[0]) as first, serve_fakes(verifiers[1]) as second:
        async with start_gateway([first, second]) as system:
            requests = [asyncio.create_task(system.generate(prompt, max_tokens=9)) for prompt in PROMPTS]
            await asyncio.sleep(3)
            go.set()
            await asyncio.gather(*requests)
    assert sum(len(verifier.opens) for verifier in verifiers) == len(PROMPTS)


@pytest.mark.usefixtures("late")
async def test_the_only_one_is_waited_for(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(hang=True)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        request = asyncio.create_task(system.generate(PROMPTS[0], max_tokens=9))
        await verifier.opened.wait()
        verifier.step_seconds = 60.0
        await asyncio.sleep(2)
        assert not request.done()
        assert len(verifier.opens) == 1
        request.cancel()
