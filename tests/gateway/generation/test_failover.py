"""Streams through a gateway with one, two and three verifiers and drafts, any of them dead."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from paceline.errors import ResourceExhaustedError
from services.common.backoff import Backoff
from services.local.ports import free_port
from support.dead import DeadServer, dead_servers
from support.fakes import FakeDraft, FakeVerifier, continue_from, serve_fakes
from support.system import StartGateway

PROMPT = [70, 71, 72]
COMBINATIONS = [dead for count in (1, 2, 3) for dead in itertools.product([False, True], repeat=count)]
SOME_LIVE = [dead for dead in COMBINATIONS if not all(dead)]


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed once is not tried again before a test is over."""
    monkeypatch.setattr("services.common.backoff.random.uniform", lambda _low, high: 600 * high)


@asynccontextmanager
async def each_at_its_address(fakes: Sequence[FakeVerifier | FakeDraft]) -> AsyncIterator[list[str]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serve_fakes(fake)) for fake in fakes]


def mixed(dead: Sequence[bool], living: Sequence[str], gone: Sequence[DeadServer]) -> list[str]:
    """Addresses in the order of `dead`."""
    sources = {False: iter(living), True: iter([server.address for server in gone])}
    return [next(sources[is_dead]) for is_dead in dead]


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("dead", SOME_LIVE)
async def test_verifiers_that_were_never_there_are_tried_once_in_all(
    start_gateway: StartGateway, dead: tuple[bool, ...]
) -> None:
    living = [FakeVerifier() for is_dead in dead if not is_dead]
    async with each_at_its_address(living) as addresses, dead_servers(sum(dead)) as gone:
        async with start_gateway(mixed(dead, addresses, gone)) as system:
            began = time.monotonic()
            for _ in range(5):
                assert (await system.generate(PROMPT, max_tokens=9)).token_ids == continue_from(PROMPT, 9)
            assert time.monotonic() - began < 5
    assert [server.num_tries for server in gone] == [1] * sum(dead)


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("dead", SOME_LIVE)
async def test_a_verifier_that_breaks_is_met_once_over_all_requests(
    start_gateway: StartGateway, dead: tuple[bool, ...]
) -> None:
    verifiers = [FakeVerifier(break_after=0 if is_dead else None) for is_dead in dead]
    async with each_at_its_address(verifiers) as addresses, start_gateway(addresses) as system:
        for _ in range(5):
            assert (await system.generate(PROMPT, max_tokens=9)).token_ids == continue_from(PROMPT, 9)
        tries = [len(verifier.opens) for verifier in verifiers]
        assert all(count <= 1 for count, is_dead in zip(tries, dead, strict=True) if is_dead)
        many = await asyncio.gather(*(system.generate(PROMPT, max_tokens=9) for _ in range(10)))
    assert all(reply.token_ids == continue_from(PROMPT, 9) for reply in many)
    broken = [verifier for verifier, is_dead in zip(verifiers, dead, strict=True) if is_dead]
    assert all(len(verifier.opens) <= 10 for verifier in broken)


@pytest.mark.usefixtures("long_pauses")
async def test_a_stream_that_loses_two_verifiers_in_turn_goes_on_at_the_third(start_gateway: StartGateway) -> None:
    verifiers = [FakeVerifier(break_after=1), FakeVerifier(break_after=1), FakeVerifier()]
    async with each_at_its_address(verifiers) as addresses, start_gateway(addresses) as system:
        for number in range(40):  # One of them is at home at each verifier.
            prompt = [*PROMPT, 65 + number]
            assert (await system.generate(prompt, max_tokens=12)).token_ids == continue_from(prompt, 12)
    assert [len(verifier.opens) for verifier in verifiers[:2]] == [1, 1]


async def test_a_verifier_that_comes_back_is_used_again(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.backoff.random.uniform", lambda _low, _high: 0.02)
    verifier = FakeVerifier(break_after=0)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        request = asyncio.create_task(system.generate(PROMPT, max_tokens=9))
        await verifier.all_closed.wait()
        verifier.break_after = None
        assert (await request).token_ids == continue_from(PROMPT, 9)


async def test_one_that_is_full_sends_a_new_request_to_another_and_a_second_refusal_is_the_answer(
    start_gateway: StartGateway,
) -> None:
    full = [FakeVerifier(break_after=0, break_code=grpc.StatusCode.RESOURCE_EXHAUSTED) for _ in range(2)]
    free = FakeVerifier()
    async with each_at_its_address([*full, free]) as addresses:
        async with start_gateway(addresses) as system:
            replies = await asyncio.gather(*(system.generate(PROMPT, max_tokens=9) for _ in range(6)))
        assert all(reply.token_ids == continue_from(PROMPT, 9) for reply in replies)
        for verifier in full:
            verifier.opens.clear()
        async with start_gateway(addresses[:2]) as system:
            with pytest.raises(ResourceExhaustedError):
                await system.generate(PROMPT, max_tokens=9)
    assert [len(verifier.opens) for verifier in full] == [1, 1]


async def test_streams_that_lose_their_verifier_wait_for_room_at_another(start_gateway: StartGateway) -> None:
    go = asyncio.Event()
    lost, full = FakeVerifier(break_after=1, commit_when=go, commits_first=True), FakeVerifier(room=2)
    prompts = [[*PROMPT, 65 + number] for number in range(12)]
    async with serve_fakes(lost) as first, AsyncExitStack() as stack:
        second = free_port()
        async with start_gateway([first, f"127.0.0.1:{second}"]) as system:
            replies = [asyncio.create_task(system.generate(prompt, max_tokens=12)) for prompt in prompts]
            while lost.num_open < len(prompts):
                await asyncio.sleep(0.01)
            await stack.enter_async_context(serve_fakes(full, port=second))
            lost.is_loading = True
            go.set()
            for prompt, reply in zip(prompts, replies, strict=True):
                assert (await reply).token_ids == continue_from(prompt, 12)
    assert full.most_open == 2
    assert len(full.opens) > len(prompts), "some were refused"


async def test_what_a_running_stream_is_refused_is_passed_on(start_gateway: StartGateway) -> None:
    verifiers = [FakeVerifier(break_after=1, break_code=grpc.StatusCode.RESOURCE_EXHAUSTED) for _ in range(2)]
    async with each_at_its_address(verifiers) as addresses, start_gateway(addresses) as system:
        with pytest.raises(ResourceExhaustedError):
            await system.generate(PROMPT, max_tokens=9)
    assert sum(len(verifier.opens) for verifier in verifiers) == 1


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("dead", SOME_LIVE)
@pytest.mark.parametrize("breaks", [True, False])
async def test_of_the_drafts_the_living_are_used_and_the_dead_tried_once_in_all(
    start_gateway: StartGateway, dead: tuple[bool, ...], breaks: bool
) -> None:
    """Whether they were never there, or answer and then break."""
    go = asyncio.Event()
    verifier = FakeVerifier(piece=1, commit_when=go, commits_first=True)
    drafts = [FakeDraft(break_after=0 if is_dead else None) for is_dead in dead if breaks or not is_dead]
    async with each_at_its_address(drafts) as living, dead_servers(0 if breaks else sum(dead)) as gone:
        addresses = living if breaks else mixed(dead, living, gone)
        async with serve_fakes(verifier) as target, start_gateway([target], addresses) as system:
            for _ in range(5):
                go.clear()
                verifier.proposed.clear()
                request = asyncio.create_task(system.generate(PROMPT, max_tokens=60))
                await verifier.proposed.wait()
                go.set()
                assert (await request).token_ids == continue_from(PROMPT, 60)
    assert all(server.num_tries == 1 for server in gone)
    assert all(len(draft.opens) <= 1 for draft in drafts if draft.break_after == 0)


async def test_dead_drafts_are_asked_once_a_pause_over_all_sequences(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = 0.2
    monkeypatch.setattr(
        "gateway.model.served_model._draft_pauses", lambda: Backoff(pause, pause, lambda longest: longest)
    )
    waiting = FakeVerifier(commit_when=asyncio.Event(), commits_first=True)
    async with dead_servers(2) as gone, serve_fakes(waiting) as target:
        began = time.monotonic()
        async with start_gateway([target], [server.address for server in gone]) as system:
            requests = [asyncio.create_task(system.generate(PROMPT, max_tokens=60, timeout=1.0)) for _ in range(20)]
            await asyncio.gather(*requests, return_exceptions=True)
        seconds = time.monotonic() - began
    assert all(2 <= server.num_tries <= seconds / pause + 1 for server in gone)
