"""The core without a transport: events, and one record of how each request ended, however it did."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from gateway.generation.outcome import Outcome
from gateway.tenants.identity import Caller
from paceline.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from paceline.v1 import inference_pb2
from support.fakes import FakeDraft, FakeVerifier, continue_from, serve_fakes
from support.generation import Core, StartCore, start_core

__all__ = ["start_core"]
PROMPT = [70, 71, 72]
CALLER = Caller("a")


class OnceOnly(FakeVerifier):
    """Serves one stream and none after it."""

    async def Verify(self, request_iterator: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        if self.opens:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        async for response in super().Verify(request_iterator, context):
            yield response


def asked(max_tokens: int = 9, **fields: Any) -> inference_pb2.GenerateRequest:
    sampling = {"max_tokens": max_tokens, **fields.pop("sampling", {})}
    return inference_pb2.GenerateRequest(token_ids={"ids": PROMPT}, sampling=sampling, **fields)


async def run(core: Core, request: Any, deadline: float | None = None) -> list[Any]:
    async with core.generation.run(request, CALLER, deadline) as events:
        return [event async for event in events]


def only_record(core: Core, outcome: Outcome) -> inference_pb2.Usage:
    """The usage of the one request that ended, as it should have."""
    (record,) = core.metrics.ended
    assert record.outcome is outcome
    assert record.caller == CALLER
    assert core.admission.active == core.admission.queued == 0
    return record.usage()


async def test_a_request_gives_started_deltas_finished_and_usage(start_core: StartCore) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_core([address]) as core:
        started, *deltas, finished, usage = await run(core, asked(sampling={"seed": 5}))
        assert (started.model, started.seed, started.num_prompt_tokens) == ("fake", 5, 3)
        assert started.request_id == core.metrics.ended[0].request_id
        assert [token for delta in deltas for token in delta.token_ids] == continue_from(PROMPT, 9)
        assert isinstance(finished, inference_pb2.Finished)
        assert usage.num_completion_tokens == only_record(core, Outcome.FINISHED).num_completion_tokens == 9


async def test_started_comes_before_any_verifier_has_a_token(start_core: StartCore) -> None:
    verifier = FakeVerifier(commit_when=asyncio.Event())
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        async with core.generation.run(asked(sampling={"seed": 5}), CALLER) as events:
            started = await anext(aiter(events))
            assert (started.seed, started.num_prompt_tokens) == (5, 3)
            assert not verifier.opens


async def test_each_choice_takes_a_place(start_core: StartCore) -> None:
    verifier = FakeVerifier(hang=True)
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        async with core.generation.run(asked(n=5), CALLER) as events:
            await anext(aiter(events))
            assert core.admission.active == 5
        assert core.admission.active == 0


async def test_a_conversation_is_run_alike(start_core: StartCore) -> None:
    request = inference_pb2.ChatRequest(messages=[{"role": "user", "content": "hi"}], sampling={"max_tokens": 6})
    async with serve_fakes(FakeVerifier()) as address, start_core([address]) as core:
        events = await run(core, request)
        assert isinstance(events[0], inference_pb2.Started)
        assert only_record(core, Outcome.FINISHED).num_completion_tokens == 6


async def test_a_stop_string_is_an_end_like_another(start_core: StartCore) -> None:
    verifier = FakeVerifier(piece=1)
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        whole = "".join(e.text for e in await run(core, asked(40)) if isinstance(e, inference_pb2.Delta))
        core.metrics.ended.clear()
        events = await run(core, asked(40, sampling={"stop": [whole[5:9]]}))
        assert "".join(e.text for e in events if isinstance(e, inference_pb2.Delta)) == whole[: whole.index(whole[5:9])]
        assert only_record(core, Outcome.FINISHED).num_completion_tokens < 40
        await verifier.all_closed.wait()


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_leaving_early_is_recorded_with_what_was_used(start_core: StartCore, num_choices: int) -> None:
    verifier = FakeVerifier(piece=1)
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        async with core.generation.run(asked(400, n=num_choices), CALLER) as events:
            async for event in events:
                if isinstance(event, inference_pb2.Delta):
                    break
        assert 1 <= only_record(core, Outcome.CANCELLED).num_completion_tokens < 400
        await verifier.all_closed.wait()


async def test_an_error_of_who_reads_is_no_end_of_its_own(start_core: StartCore) -> None:
    async with serve_fakes(FakeVerifier(piece=1)) as address, start_core([address]) as core:
        with pytest.raises(GeneratorExit):
            async with core.generation.run(asked(400), CALLER) as events:
                await anext(aiter(events))
                raise GeneratorExit
        only_record(core, Outcome.CANCELLED)


async def test_a_cancelled_task_ends_its_streams_before_its_place_is_given_on(start_core: StartCore) -> None:
    go = asyncio.Event()
    verifier, draft = FakeVerifier(commit_when=go, commits_first=True), FakeDraft()
    async with serve_fakes(verifier, draft) as address:
        async with start_core([address], [address], max_active_requests=1) as core:
            first = asyncio.create_task(run(core, asked()))
            await verifier.opened.wait()
            await draft.opened.wait()
            second = asyncio.create_task(run(core, asked()))
            while not core.admission.queued:
                await asyncio.sleep(0)
            go.set()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            (record,) = core.metrics.ended
            assert record.outcome is Outcome.CANCELLED
            await second
            assert verifier.most_open == 1


@pytest.mark.parametrize("hang", [True, False])
async def test_a_deadline_ends_a_request_wherever_it_is(start_core: StartCore, hang: bool) -> None:
    verifier = FakeVerifier(hang=hang, break_after=0)
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        with pytest.raises(DeadlineExceededError):
            await run(core, asked(), deadline=0.3)
        only_record(core, Outcome.DEADLINE)
        await verifier.all_closed.wait()


async def test_a_deadline_holds_for_a_request_that_waits_for_a_place(start_core: StartCore) -> None:
    verifier = FakeVerifier(hang=True)
    async with serve_fakes(verifier) as address, start_core([address], max_active_requests=1) as core:
        first = asyncio.create_task(run(core, asked()))
        await verifier.opened.wait()
        with pytest.raises(DeadlineExceededError):
            await run(core, asked(), deadline=0.1)
        only = core.metrics.ended[0]
        assert (only.outcome, core.admission.queued) == (Outcome.DEADLINE, 0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_what_a_verifier_refuses_is_passed_on_and_recorded(start_core: StartCore) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.INVALID_ARGUMENT)
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        with pytest.raises(grpc.aio.AioRpcError, match="broken on purpose"):
            await run(core, asked())
        only_record(core, Outcome.REFUSED)


async def test_a_verifier_that_stays_away_is_a_failure_with_what_was_used(start_core: StartCore) -> None:
    async with serve_fakes(OnceOnly(break_after=1)) as address, start_core([address], resume_seconds=0.2) as core:
        with pytest.raises(UnavailableError):
            await run(core, asked())
        assert only_record(core, Outcome.FAILED).num_completion_tokens == 3
        assert core.metrics.ended[0].transcripts[0].num_failovers >= 1


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asked(model="other"), NotFoundError),
        (asked(sampling={"top_p": 7.0}), InvalidArgumentError),
        (asked(adapter="mine"), NotFoundError),
        (inference_pb2.GenerateRequest(), InvalidArgumentError),
        (inference_pb2.ChatRequest(), InvalidArgumentError),
    ],
    ids=["model", "sampling", "adapter", "no input", "no messages"],
)
async def test_what_is_wrong_is_refused_and_recorded(
    start_core: StartCore, request_: Any, error: type[Exception]
) -> None:
    verifier = FakeVerifier()
    async with serve_fakes(verifier) as address, start_core([address]) as core:
        with pytest.raises(error):
            await run(core, request_)
        only_record(core, Outcome.REFUSED)
    assert not verifier.opens


async def test_what_is_over_the_queue_is_refused_and_recorded(start_core: StartCore) -> None:
    verifier = FakeVerifier(hang=True)
    limits = {"max_active_requests": 1, "max_queued_requests": 0}
    async with serve_fakes(verifier) as address, start_core([address], **limits) as core:
        first = asyncio.create_task(run(core, asked()))
        await verifier.opened.wait()
        with pytest.raises(ResourceExhaustedError):
            await run(core, asked())
        assert [record.outcome for record in core.metrics.ended] == [Outcome.REFUSED]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_model_that_never_answered_is_asked_and_then_unavailable(start_core: StartCore) -> None:
    async with start_core(["127.0.0.1:1"]) as core:
        with pytest.raises(UnavailableError, match="'fake'") as caught:
            await run(core, asked())
        assert caught.value.retry_after_seconds is not None
        only_record(core, Outcome.FAILED)
