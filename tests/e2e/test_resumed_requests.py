"""A request that another gateway had begun goes on where its client was: as if nothing had happened."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from paceline import FailedPreconditionError, InvalidArgumentError
from paceline.errors import from_call
from paceline.requests import chat_request, generate_request
from paceline.resuming import Received
from paceline.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2
from support.system import System

OPTIONS = {"seed": 5, "max_tokens": 24, "temperature": 1.5, "ignore_eos": True}


@pytest.fixture
async def stub(system: System) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


class Whole:
    """All that a client has of a request, choice by choice."""

    def __init__(self, events: list[Any]) -> None:
        self.started = [event.started for event in events if event.HasField("started")]
        deltas = [event.delta for event in events if event.HasField("delta")]
        indices = sorted({delta.choice for delta in deltas})
        by_choice = {index: [delta for delta in deltas if delta.choice == index] for index in indices}
        self.texts = {index: "".join(delta.text for delta in own) for index, own in by_choice.items()}
        self.token_ids = {
            index: [each for delta in own for each in delta.token_ids] for index, own in by_choice.items()
        }
        self.logprobs = {
            index: [(each.logprob, [top.token_id for top in each.top]) for delta in own for each in delta.logprobs]
            for index, own in by_choice.items()
        }
        finished = [event.finished for event in events if event.HasField("finished")]
        self.reasons = {one.choice: one.finish_reason for one in finished}
        assert len(self.reasons) == len(finished)
        self.usage = [event.usage for event in events if event.HasField("usage")]


async def whole_of(stub: Any, request: Any, num_received: int | None = None) -> Whole:
    """What a client has that receives so many events of one gateway, and the rest of another; None: all of one."""
    method = stub.Chat if isinstance(request, inference_pb2.ChatRequest) else stub.Generate
    received, events = Received(request), []
    for most in (num_received, None) if num_received is not None else (None,):
        call = method(received.next_request())
        try:
            async for event in call:
                if most is not None and len(events) == most:
                    break
                if received.take(event):
                    events.append(event)
        finally:
            call.cancel()
        if received.is_complete:
            break
    return Whole(events)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2, "logprobs": 2},
        {"stop": ["e", "\n"], "min_tokens": 3},
        {"presence_penalty": 0.6, "repetition_penalty": 1.2, "bad_words": ["a"]},
        {"temperature": 0, "ignore_eos": False},
        {"stop_token_ids": list(range(97, 105))},
    ],
    ids=str,
)
async def test_a_request_goes_on_wherever_it_was_broken(stub: Any, options: dict[str, Any]) -> None:
    request = generate_request("naïve \N{GRINNING FACE} x", {**OPTIONS, **options})  # type: ignore[typeddict-item]
    expected = await whole_of(stub, request)
    num_events = 1 + sum(map(len, expected.token_ids.values()))
    for num_received in range(0, num_events, 3):
        found = await whole_of(stub, request, num_received)
        assert found.token_ids == expected.token_ids
        assert found.texts == expected.texts
        assert found.reasons == expected.reasons
        for index, logprobs in expected.logprobs.items():
            assert [top for _, top in found.logprobs[index]] == [top for _, top in logprobs]
            assert [each for each, _ in found.logprobs[index]] == pytest.approx(
                [each for each, _ in logprobs], abs=1e-4
            )
        [usage], [undisturbed] = found.usage, expected.usage
        assert usage.num_prompt_tokens == undisturbed.num_prompt_tokens
        assert usage.num_completion_tokens == undisturbed.num_completion_tokens
        assert usage.num_cached_tokens <= usage.num_prompt_tokens
        assert usage.num_accepted_tokens <= usage.num_drafted_tokens
        assert 0 < usage.time_to_first_token_seconds <= usage.total_seconds


async def test_a_chat_goes_on_and_keeps_its_id(system: System, stub: Any) -> None:
    request = chat_request([("user", "hi")], {**OPTIONS, "stop": ["zz"]})  # type: ignore[typeddict-item]
    expected = await whole_of(stub, request)
    found = await whole_of(stub, request, 5)
    assert found.texts == expected.texts
    assert len(found.started) == 1
    received = Received(request)
    call = stub.Chat(request)
    async for event in call:
        received.take(event)
        if event.HasField("delta"):
            break
    call.cancel()
    again = [event.started async for event in stub.Chat(received.next_request()) if event.HasField("started")]
    assert again[0].request_id == received.next_request().resume.request_id
    assert again[0].sampling == received.next_request().sampling


def resume_with(**fields: Any) -> inference_pb2.GenerateRequest:
    known: dict[str, Any] = {"request_id": "a" * 32, "choices": [{"token_ids": [70], "num_rounds": 1}]}
    request = generate_request([70, 71], {"seed": 1, "max_tokens": 8})
    request.resume.CopyFrom(inference_pb2.Resume(**known | fields))
    return request


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"request_id": ""}, "resume.request_id"),
        ({"request_id": "a/../b"}, "resume.request_id"),
        ({"request_id": "a" * 33}, "resume.request_id"),
        ({"request_id": f"batch_{'a' * 24}-0"}, "resume.request_id"),
        ({"choices": [{}, {}]}, "resume.choices"),
        ({"choices": [{"token_ids": [1 << 20]}]}, "resume.choices[0].token_ids"),
        ({"choices": [{"token_ids": [70] * 9}]}, "resume.choices[0].token_ids"),
        ({"choices": [{"token_ids": [70], "num_drafted_tokens": 65}]}, "resume.choices[0].num_drafted_tokens"),
        ({"choices": [{"token_ids": [70], "num_accepted_tokens": 1}]}, "resume.choices[0].num_drafted_tokens"),
        ({"choices": [{"token_ids": [70], "num_rounds": 2}]}, "resume.choices[0].num_rounds"),
    ],
)
async def test_what_cannot_have_been_received_is_refused(stub: Any, fields: dict[str, Any], place: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Generate(resume_with(**fields))]
    error = from_call(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == place


async def test_nobody_received_more_than_a_stop_string_lets_through(system: System, stub: Any) -> None:
    """Else what is cut off one choice would pay for another."""
    whole = await system.generate([70, 71], seed=1, max_tokens=30, ignore_eos=True)
    options = {"seed": 1, "max_tokens": 30, "ignore_eos": True, "stop": [whole.text[8:12]]}
    request = generate_request([70, 71], options)  # type: ignore[arg-type]
    resume = {"request_id": "c" * 32, "revision_digest": whole.started.revision_digest}
    request.resume.CopyFrom(inference_pb2.Resume(**resume, choices=[{"token_ids": whole.token_ids}]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Generate(request)]
    error = from_call(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == "resume.choices[0].token_ids"


async def test_without_the_seed_that_was_told_nothing_goes_on(stub: Any) -> None:
    request = resume_with()
    request.sampling.ClearField("seed")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Generate(request)]
    assert "sampling.seed" in str(from_call(caught.value))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"revision_digest": "f" * 64}, "REVISION_CHANGED"), ({"adapter_digest": "f" * 64}, "ADAPTER_CHANGED")],
)
async def test_on_another_model_nothing_goes_on(stub: Any, fields: dict[str, str], reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Generate(resume_with(**fields))]
    error = from_call(caught.value)
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == reason


async def test_what_was_received_whole_ends_at_once(system: System, stub: Any) -> None:
    """Its client lost the connection behind the last delta."""
    whole = await system.generate([70, 71], seed=1, max_tokens=8, ignore_eos=True)
    request = generate_request([70, 71], {"seed": 1, "max_tokens": 8, "ignore_eos": True})
    resume = {"request_id": "b" * 32, "revision_digest": whole.started.revision_digest}
    request.resume.CopyFrom(inference_pb2.Resume(**resume, choices=[{"token_ids": whole.token_ids}]))
    events = [event async for event in stub.Generate(request)]
    assert [event.WhichOneof("event") for event in events] == ["started", "finished", "usage"]
    assert events[1].finished.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    assert events[2].usage.num_completion_tokens == 8
