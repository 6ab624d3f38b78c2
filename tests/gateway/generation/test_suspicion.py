"""A request that verifiers die of ends by name; whoever was there by chance goes on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from paceline.errors import AbortedError
from support.fakes import FakeVerifier, continue_from, serve_fakes
from support.system import StartGateway

POISON = 99
PROMPT = [70, 71, 72]


@asynccontextmanager
async def served(verifiers: Sequence[FakeVerifier]) -> AsyncIterator[list[str]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serve_fakes(verifier)) for verifier in verifiers]


async def test_a_request_that_two_verifiers_die_of_is_not_carried_to_a_third(start_gateway: StartGateway) -> None:
    verifiers = [FakeVerifier(crash_on=POISON) for _ in range(3)]
    async with served(verifiers) as addresses, start_gateway(addresses) as system:
        with pytest.raises(AbortedError) as caught:
            await system.generate([1, POISON], max_tokens=9)
        assert caught.value.reason == "CRASHED_TWICE"
        assert sorted(len(verifier.opens) for verifier in verifiers) == [0, 1, 1]
        assert (await system.generate(PROMPT, max_tokens=9)).token_ids == continue_from(PROMPT, 9)


async def test_those_that_were_there_by_chance_go_on(start_gateway: StartGateway) -> None:
    """All wait for their first token when the first verifier dies, and are tried one by one then."""
    go = asyncio.Event()
    verifiers = [FakeVerifier(crash_on=POISON, commit_when=go) for _ in range(3)]
    async with served(verifiers) as addresses, start_gateway(addresses) as system:
        requests = [asyncio.create_task(system.generate([*PROMPT, number], max_tokens=9)) for number in range(12)]
        while sum(verifier.num_open for verifier in verifiers) < 12:
            await asyncio.sleep(0)
        poisoned = asyncio.create_task(system.generate([1, POISON], max_tokens=9))
        crashes = [asyncio.create_task(verifier.crashed.wait()) for verifier in verifiers]
        await asyncio.wait(crashes, return_when=asyncio.FIRST_COMPLETED)
        go.set()
        with pytest.raises(AbortedError):
            await poisoned
        for number, request in enumerate(requests):
            assert (await request).token_ids == continue_from([*PROMPT, number], 9)
        for crash in crashes:
            crash.cancel()


async def test_a_verifier_that_is_lost_with_a_token_on_its_way_counts_against_nobody(
    start_gateway: StartGateway,
) -> None:
    verifiers = [*(FakeVerifier(break_after=1) for _ in range(3)), FakeVerifier()]
    async with served(verifiers) as addresses, start_gateway(addresses) as system:
        for number in range(40):  # One of them is at home at each verifier.
            prompt = [*PROMPT, 65 + number]
            assert (await system.generate(prompt, max_tokens=15)).token_ids == continue_from(prompt, 15)
