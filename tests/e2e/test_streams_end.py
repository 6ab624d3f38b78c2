"""However a stream ends, and whatever happens to the draft, every KV block comes back and nothing hangs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from paceline import DeadlineExceededError
from paceline.internal.v1 import speculation_pb2
from services.engine.engine_loop import EngineLoop
from services.verifier.client import VerifierClient
from support.fakes import FakeDraft, serve_fakes
from support.system import StartGateway, System, start_system

ENDLESS = {"seed": 3, "ignore_eos": True, "max_tokens": 480}


class Engines:
    """The engine loops of every service started in a test."""

    def __init__(self) -> None:
        self.loops: list[EngineLoop[Any]] = []

    async def settled(self) -> None:
        """Returns once no engine has a sequence, and checks that it has all its blocks."""
        for loop in self.loops:
            await asyncio.wait_for(self._settled(loop), 20)

    @staticmethod
    async def _settled(loop: EngineLoop[Any]) -> None:
        while True:
            await loop.ask(lambda role: role.engine.check_integrity())
            if not await loop.ask(lambda role: role.engine.pool.num_used + len(role.engine.scheduler)):
                return


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    recorded = Engines()

    def record(*given: Any) -> EngineLoop[Any]:
        recorded.loops.append(EngineLoop(*given))
        return recorded.loops[-1]

    monkeypatch.setattr("services.model_server.lifespan.EngineLoop", record)
    return recorded


@pytest.fixture
async def watched(engines: Engines, target_folder: str, draft_folder: str) -> AsyncIterator[System]:
    async with start_system(target_folder, [draft_folder]) as running:
        assert len(engines.loops) == 2
        yield running


async def _read_some(system: System, **options: Any) -> None:
    async with aclosing(system.client.generate("def f(", **ENDLESS, **options)) as events:
        async for event in events:
            if event.delta.token_ids:
                return


@pytest.mark.parametrize("speculation", [True, False])
async def test_a_cancelled_stream_frees_everything(watched: System, engines: Engines, speculation: bool) -> None:
    await asyncio.gather(*(_read_some(watched, speculation=speculation, n=1 + i % 3) for i in range(12)))
    await engines.settled()
    assert len((await watched.generate("x", max_tokens=5, ignore_eos=True)).token_ids) == 5


async def test_a_deadline_ends_the_stream_and_frees_everything(watched: System, engines: Engines) -> None:
    with pytest.raises(DeadlineExceededError):
        await watched.generate("def f(", timeout=0.15, n=4, **ENDLESS)
    await engines.settled()


async def test_a_client_that_is_gone_frees_everything(watched: System, engines: Engines) -> None:
    channel = grpc.aio.insecure_channel(watched.gateway)
    call = channel.unary_stream("/paceline.v1.InferenceService/Generate")(b"\x12\x01x\x2a\x02\x58\x01")
    assert await call.read()
    await channel.close(None)
    await engines.settled()


async def test_a_stop_string_frees_everything(watched: System, engines: Engines) -> None:
    text = (await watched.generate("def f(", seed=3, max_tokens=60)).text
    reply = await watched.generate("def f(", stop=[text[20:23]], **ENDLESS)
    assert text.startswith(reply.text)
    assert text[20:23] not in reply.text
    await engines.settled()


@pytest.mark.parametrize("max_draft_tokens", [1, 6])
async def test_a_draft_that_breaks_or_misleads_changes_nothing(
    engines: Engines, target_folder: str, start_gateway: StartGateway, max_draft_tokens: int
) -> None:
    async with start_system(target_folder) as alone:
        options = {"seed": 3, "ignore_eos": True, "max_tokens": 60, "max_draft_tokens": max_draft_tokens}
        expected = await alone.generate("def f(", **options)
        for draft in (FakeDraft(), FakeDraft(break_after=2), FakeDraft(break_after=0)):
            async with serve_fakes(draft) as address, start_gateway([alone.verifier], [address]) as system:
                reply = await system.generate("def f(", **options)
            assert reply.token_ids == expected.token_ids
        async with start_gateway([alone.verifier], ["127.0.0.1:1"]) as system:
            assert (await system.generate("def f(", **options)).token_ids == expected.token_ids
        await engines.settled()


async def test_proposals_that_come_too_late_lose_no_commit(watched: System) -> None:
    """The verifier has finished long before the other end reads its commits, and is sent proposals meanwhile."""
    opening = speculation_pb2.Open(
        token_ids=[5, 6, 7], num_prompt_tokens=3, sampling={"seed": 1, "max_tokens": 40, "ignore_eos": True},
        max_draft_tokens=4,
    )  # fmt: skip
    async with grpc.aio.insecure_channel(watched.verifier) as channel:
        client = VerifierClient(watched.verifier, channel)
        async with client.verify(timeout=30) as stream:
            await stream.open(opening)
            num_tokens = 0
            while commit := await stream.next_commit():
                num_tokens += len(commit.token_ids)
                for _ in range(20):
                    await asyncio.sleep(0.001)
                    await stream.propose(speculation_pb2.Proposal(anchor=commit.anchor, token_ids=[1, 2]))
                if commit.finish_reason:
                    break
    assert num_tokens == 40
