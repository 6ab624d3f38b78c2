"""Streams through a gateway whose services break, hang and come back."""

import asyncio

import grpc
import pytest

from paceline import PacelineError, ResourceExhaustedError, UnavailableError
from paceline.v1 import model_pb2
from support.fakes import FakeDraft, FakeVerifier, continue_from, serve_fakes
from support.system import StartGateway, collect

PROMPT = [70, 71, 72]


async def test_commits_go_to_the_draft_and_proposals_to_the_verifier_unopened(start_gateway: StartGateway) -> None:
    go = asyncio.Event()
    verifier, draft = FakeVerifier(commit_when=go, commits_first=True), FakeDraft()
    async with serve_fakes(verifier, draft) as address, start_gateway([address], [address]) as system:
        request = asyncio.create_task(system.generate(PROMPT, max_tokens=12, seed=1))
        await verifier.proposed.wait()
        go.set()
        reply = await request
        await draft.all_closed.wait()
        await verifier.all_closed.wait()
    assert reply.token_ids == continue_from(PROMPT, 12)
    assert verifier.proposals[0].anchor.position == 1
    assert list(verifier.opens[0].token_ids) == PROMPT
    assert list(draft.opens[0].token_ids) == PROMPT + reply.token_ids[: verifier.piece]
    assert draft.opens[0].sampling.seed == 1
    told = [token_id for commit in draft.commits for token_id in commit.token_ids]
    assert told == reply.token_ids[verifier.piece :][: len(told)]


async def test_with_speculation_off_no_draft_is_opened(start_gateway: StartGateway) -> None:
    verifier, draft = FakeVerifier(), FakeDraft()
    async with serve_fakes(verifier, draft) as address, start_gateway([address], [address]) as system:
        await system.generate(PROMPT, max_tokens=12, speculation=False)
    assert draft.opens == []
    assert verifier.opens[0].max_draft_tokens == 0


async def test_a_draft_of_another_vocabulary_is_not_asked(start_gateway: StartGateway) -> None:
    verifier, draft = FakeVerifier(), FakeDraft(info=model_pb2.ModelInfo(vocab_size=300))
    async with serve_fakes(verifier) as address, serve_fakes(draft) as other:
        async with start_gateway([address], [other]) as system:
            assert (await system.generate(PROMPT, max_tokens=12)).token_ids == continue_from(PROMPT, 12)
    assert draft.opens == []


@pytest.mark.parametrize("break_after", [0, 1, 3])
async def test_a_draft_that_breaks_is_gone_on_without(start_gateway: StartGateway, break_after: int) -> None:
    verifier, draft = FakeVerifier(), FakeDraft(break_after=break_after)
    async with serve_fakes(verifier, draft) as address, start_gateway([address], [address]) as system:
        reply = await system.generate(PROMPT, max_tokens=60)
    assert reply.token_ids == continue_from(PROMPT, 60)


async def test_a_draft_that_was_never_there_is_gone_on_without(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier()
    async with serve_fakes(verifier) as address, start_gateway([address], ["127.0.0.1:1"]) as system:
        reply = await system.generate(PROMPT, max_tokens=30)
        models = await system.client.list_models()
    assert reply.token_ids == continue_from(PROMPT, 30)
    assert not models[0].HasField("draft")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED])
async def test_a_lost_verifier_is_replaced_and_the_tokens_are_the_same(
    start_gateway: StartGateway, code: grpc.StatusCode
) -> None:
    breaking, other = FakeVerifier(break_after=2, break_code=code), FakeVerifier(piece=5)
    async with serve_fakes(breaking) as first, serve_fakes(other) as second:
        async with start_gateway([first, second]) as system:
            for number in range(40):  # One of them is at home at the verifier that breaks.
                prompt = [*PROMPT, 65 + number]
                reply = await system.generate(prompt, max_tokens=40, seed=4)
                if breaking.opens:
                    break
    assert reply.token_ids == continue_from(prompt, 40)
    resumed = other.opens[-1]
    assert list(resumed.token_ids) == prompt + reply.token_ids[:6]
    assert resumed.num_prompt_tokens == len(prompt)
    assert resumed.sampling.seed == 4


async def test_when_no_verifier_comes_back_the_error_says_so(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(break_after=0)
    async with serve_fakes(verifier) as address, start_gateway([address], resume_seconds=0.3) as system:
        with pytest.raises(UnavailableError):
            await system.generate(PROMPT, max_tokens=5)
    assert len(verifier.opens) > 1


async def test_what_a_verifier_refuses_is_refused_at_once(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        with pytest.raises(ResourceExhaustedError, match="broken on purpose"):
            await system.generate(PROMPT, max_tokens=5)
    assert len(verifier.opens) == 1


@pytest.mark.parametrize("end", ["cancel", "deadline", "connection"])
async def test_a_client_that_is_gone_frees_everything(start_gateway: StartGateway, end: str) -> None:
    verifier, draft = FakeVerifier(commit_when=asyncio.Event(), commits_first=True), FakeDraft()
    async with serve_fakes(verifier, draft) as address, start_gateway([address], [address]) as system:
        stream = system.client.generate(PROMPT, timeout=0.5 if end == "deadline" else None)
        request = asyncio.create_task(collect(stream))
        await verifier.opened.wait()
        await draft.opened.wait()
        if end == "cancel":
            request.cancel()
        elif end == "connection":
            await system.client.close()
        with pytest.raises((asyncio.CancelledError, PacelineError, grpc.aio.UsageError)):
            await request
        await verifier.all_closed.wait()
        await draft.all_closed.wait()


async def test_stop_strings_end_the_text_and_free_the_verifier(start_gateway: StartGateway) -> None:
    script = list(b"one two END three")
    ids = {character: index for index, character in enumerate(sorted(_alphabet()))}
    verifier = FakeVerifier(script=[ids[_shown(byte)] for byte in script])
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        reply = await system.generate(PROMPT, stop=["END", "nothing"])
        await verifier.all_closed.wait()
    assert reply.text == "one two "
    assert len(reply.token_ids) == len("one two END")
    assert reply.finish_reasons == {0: 2}


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def _shown(byte: int) -> str:
    return "Ġ" if byte == 32 else chr(byte)


async def test_a_slow_client_holds_up_nobody_else(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(piece=1)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        slow = system.client.generate(PROMPT, max_tokens=400)
        await anext(slow)
        for _ in range(3):
            assert len((await system.generate(PROMPT, max_tokens=100)).token_ids) == 100
        await slow.aclose()
        await verifier.all_closed.wait()


async def test_where_nothing_is_wanted_no_draft_is_opened_from_the_first_request_on(
    start_gateway: StartGateway,
) -> None:
    verifier, draft = FakeVerifier(num_wanted=0), FakeDraft()
    async with serve_fakes(verifier, draft) as address, start_gateway([address], [address]) as system:
        await system.client.list_models()  # The draft has said by then what it is.
        for _ in range(3):
            await system.generate(PROMPT, max_tokens=30)
    assert draft.opens == []
    assert {opening.draft_revision_digest for opening in verifier.opens} == {draft.info.revision_digest}


async def test_a_draft_elsewhere_begins_with_the_prompt_and_one_beside_behind_it(start_gateway: StartGateway) -> None:
    for place, lengths in (("another machine", [1, 0]), ("one machine", [1, 1])):
        verifier, draft = FakeVerifier(place="one machine"), FakeDraft(place=place)
        async with serve_fakes(verifier) as target, serve_fakes(draft) as beside:
            async with start_gateway([target], [beside]) as system:
                await system.client.list_models()
                for _ in lengths:
                    draft.opened.clear()
                    verifier.commit_when, verifier.commits_first = draft.opened, lengths[len(draft.opens)] == 1
                    await system.generate(PROMPT, max_tokens=12)
                    await draft.all_closed.wait()
        produced = [len(opening.token_ids) > len(PROMPT) for opening in draft.opens]
        assert produced == [bool(length) for length in lengths]
        assert all(opening.draft_is_apart == (place != "one machine") for opening in verifier.opens)
        assert draft.opens[0].num_wanted == 4
