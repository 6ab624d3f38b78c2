"""A model that is rolled to another revision: old streams stay on the old one or end by name, new ones take the new."""

import asyncio

import pytest

from paceline.errors import FailedPreconditionError
from paceline.v1 import model_pb2
from support.fakes import INFO, FakeVerifier, continue_from, serve_fakes
from support.system import StartGateway

PROMPT = [70, 71, 72]


def at(revision: str) -> model_pb2.ModelInfo:
    info = model_pb2.ModelInfo()
    info.CopyFrom(INFO)
    info.revision_digest = revision
    return info


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.backoff.random.uniform", lambda _low, _high: 0.02)


async def test_a_sequence_is_always_opened_on_the_revision_that_was_described(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(info=at("old"))
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        await system.generate(PROMPT, max_tokens=9)
        (model,) = await system.client.list_models()
    assert verifier.opens[0].revision_digest == model.target.revision_digest == "old"


async def test_a_verifier_that_was_rolled_unseen_serves_new_requests_at_once(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(info=at("old"))
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        await system.generate(PROMPT, max_tokens=9)
        verifier.info = at("new")
        assert (await system.generate(PROMPT, max_tokens=9)).token_ids == continue_from(PROMPT, 9)
        (model,) = await system.client.list_models()
    assert [message.revision_digest for message in verifier.opens] == ["old", "new"]
    assert model.target.revision_digest == "new"


async def test_a_running_stream_goes_on_at_a_replica_of_its_revision(start_gateway: StartGateway) -> None:
    go = asyncio.Event()
    rolled, old = FakeVerifier(info=at("old"), break_after=2), FakeVerifier(info=at("old"), commit_when=go)
    async with serve_fakes(rolled) as first, serve_fakes(old) as second:
        async with start_gateway([first, second]) as system:
            prompts = [[*PROMPT, 65 + number] for number in range(8)]
            running = [asyncio.create_task(system.generate(prompt, max_tokens=30)) for prompt in prompts]
            await asyncio.gather(rolled.opened.wait(), old.opened.wait())
            rolled.info, rolled.break_after = at("new"), 2
            go.set()
            for prompt, reply in zip(prompts, await asyncio.gather(*running), strict=True):
                assert reply.token_ids == continue_from(prompt, 30)
            rolled.break_after = None
            async with asyncio.timeout(10):
                while (await system.client.list_models())[0].target.revision_digest != "new":
                    await system.generate(PROMPT, max_tokens=3)
            before = len(old.opens)
            for _ in range(3):
                await system.generate(PROMPT, max_tokens=9)
    assert len(old.opens) == before, "new requests take the new revision"
    assert {message.revision_digest for message in old.opens} == {"old"}
    assert rolled.opens[-1].revision_digest == "new"


async def test_a_running_stream_ends_by_name_when_its_revision_is_gone(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(info=at("old"), break_after=2)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        stream = system.client.generate(PROMPT, max_tokens=300)
        while not (await anext(stream)).delta.token_ids:
            pass
        verifier.info = at("new")
        with pytest.raises(FailedPreconditionError, match="'fake' was rolled to another revision") as caught:
            async for _ in stream:
                pass
        verifier.break_after = None
        assert (await system.generate(PROMPT, max_tokens=9)).token_ids == continue_from(PROMPT, 9)
    assert caught.value.reason == "REVISION_CHANGED"
    assert [message.revision_digest for message in verifier.opens] == ["old", "new"]


async def test_a_model_rolled_back_is_served_at_the_old_revision_again(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(info=at("old"))
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        for revision in ("old", "new", "old", "new"):
            verifier.info = at(revision)
            await system.generate(PROMPT, max_tokens=9)
            assert verifier.opens[-1].revision_digest == revision
