"""Each wrong request gets its status and details; nobody else is hurt."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

from paceline import InvalidArgumentError, PacelineError, ResourceExhaustedError
from paceline.errors import from_call
from paceline.internal.v1 import speculation_pb2, verifier_pb2, verifier_pb2_grpc
from paceline.v1 import inference_pb2
from support.system import System, start_system

INVALID = grpc.StatusCode.INVALID_ARGUMENT

WRONG: list[tuple[str, Any, dict[str, Any], grpc.StatusCode, str]] = [
    ("unknown model", "a", {"model": "nope"}, grpc.StatusCode.NOT_FOUND, "nope"),
    ("unknown adapter", "a", {"adapter": "nope"}, grpc.StatusCode.NOT_FOUND, "nope"),
    ("empty prompt", "", {}, INVALID, "prompt"),
    ("no token ids", [], {}, INVALID, "token_ids.ids"),
    ("token id out of range", [1, 256], {}, INVALID, "token_ids.ids"),
    ("prompt over the context", [1] * 600, {}, INVALID, "token_ids.ids"),
    ("negative temperature", "a", {"temperature": -1.0}, INVALID, "sampling.temperature"),
    ("temperature not a number", "a", {"temperature": float("nan")}, INVALID, "sampling.temperature"),
    ("top_p of 0", "a", {"top_p": 0.0}, INVALID, "sampling.top_p"),
    ("min_p over 1", "a", {"min_p": 1.5}, INVALID, "sampling.min_p"),
    ("max_tokens of 0", "a", {"max_tokens": 0}, INVALID, "sampling.max_tokens"),
    ("repetition_penalty of 0", "a", {"repetition_penalty": 0.0}, INVALID, "sampling.repetition_penalty"),
    ("presence_penalty", "a", {"presence_penalty": 3.0}, INVALID, "sampling.presence_penalty"),
    ("frequency_penalty", "a", {"frequency_penalty": -3.0}, INVALID, "sampling.frequency_penalty"),
    ("bias of an unknown token", "a", {"logit_bias": {999: 1.0}}, INVALID, "sampling.logit_bias[999]"),
    ("bias too large", "a", {"logit_bias": {1: 1e9}}, INVALID, "sampling.logit_bias"),
    ("too many logprobs", "a", {"logprobs": 21}, INVALID, "sampling.logprobs"),
    ("empty stop string", "a", {"stop": ["x", ""]}, INVALID, "sampling.stop[1]"),
    ("too many stop strings", "a", {"stop": ["x"] * 17}, INVALID, "sampling.stop"),
    ("no choices", "a", {"n": 0}, INVALID, "n"),
    ("too many choices", "a", {"n": 17}, INVALID, "n"),
    ("priority", "a", {"priority": 101}, INVALID, "priority"),
    ("draft tokens", "a", {"max_draft_tokens": 65}, INVALID, "speculation.max_draft_tokens"),
]


async def test_each_wrong_request_gets_its_status_and_details(system: System) -> None:
    for name, prompt, options, code, subject in WRONG:
        with pytest.raises(PacelineError) as caught:
            await system.generate(prompt, **options)
        assert caught.value.code is code, name
        if code is INVALID:
            assert [violation.field for violation in caught.value.violations] == [subject], name
            assert caught.value.violations[0].description, name
        else:
            assert caught.value.resource_name == subject, name
    assert (await system.generate("ok", max_tokens=3, ignore_eos=True)).usage.num_completion_tokens == 3


async def test_every_wrong_field_is_reported_at_once(system: System) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await system.generate("a", temperature=-1.0, top_p=0.0, n=99)
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"sampling.temperature", "sampling.top_p", "n"}


async def test_a_prompt_over_the_context_says_both_numbers(system: System) -> None:
    with pytest.raises(InvalidArgumentError, match=r"600 tokens.*context of 512"):
        await system.generate("x" * 600)


async def test_a_prompt_of_5_megabytes_is_refused_with_both_numbers(system: System) -> None:
    with pytest.raises(InvalidArgumentError, match=r"5000000 bytes.*4194304 bytes"):
        await system.generate("x" * 5_000_000)


async def test_a_request_without_input_is_refused(system: System) -> None:
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        call = _generate(channel)(inference_pb2.GenerateRequest().SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is INVALID


@pytest.mark.parametrize("data", [b"\x12\x02\xff\xfe", b"\xff\xff\xff"], ids=["invalid UTF-8", "no message"])
async def test_bytes_that_are_no_request_are_refused(system: System, data: bytes) -> None:
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _generate(channel)(data).read()
    assert caught.value.code() is INVALID
    assert from_call(caught.value).violations[0].field == "request"


def _generate(channel: grpc.aio.Channel) -> Any:
    """Generate with requests as raw bytes."""
    return channel.unary_stream("/paceline.v1.InferenceService/Generate")


async def test_the_verifier_itself_checks_what_it_is_given(system: System) -> None:
    good = speculation_pb2.Open(token_ids=[1, 2], num_prompt_tokens=2, sampling={"seed": 1, "max_tokens": 3})

    def changed(**fields: Any) -> speculation_pb2.Open:
        message = speculation_pb2.Open()
        message.CopyFrom(good)
        for name in fields:
            message.ClearField(name)
        message.MergeFrom(speculation_pb2.Open(**fields))
        return message

    wrong = [
        (changed(token_ids=[]), INVALID),
        (changed(token_ids=[1, 5000]), INVALID),
        (changed(token_ids=[1] * 512), INVALID),
        (changed(num_prompt_tokens=3), INVALID),
        (changed(sampling={"max_tokens": 3}), INVALID),
        (changed(sampling={"seed": 1, "temperature": -1.0}), INVALID),
        (changed(model="other"), grpc.StatusCode.NOT_FOUND),
        (changed(adapter_digest="00"), INVALID),
        (changed(adapter_digest="00" * 32), grpc.StatusCode.NOT_FOUND),
    ]
    async with grpc.aio.insecure_channel(system.verifier) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        for message, code in wrong:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Verify(iter([verifier_pb2.VerifyRequest(open=message)])).read()
            assert caught.value.code() is code
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Verify(iter([verifier_pb2.VerifyRequest(proposal={})])).read()
        assert caught.value.code() is INVALID
        commits = [r.commit async for r in stub.Verify(iter([verifier_pb2.VerifyRequest(open=good)]))]
        assert sum(len(commit.token_ids) for commit in commits) == 3


async def test_ten_thousand_requests_at_once_are_served_or_refused(target_folder: str) -> None:
    limits = {"max_active_requests": 8, "max_queued_requests": 24}
    async with start_system(target_folder, gateway=limits) as system:

        async def one() -> str:
            try:
                reply = await system.generate("a", max_tokens=2, ignore_eos=True, seed=1)
            except ResourceExhaustedError as error:
                assert error.retry_after_seconds
                return error.code.name
            return f"{len(reply.token_ids)} tokens"

        outcomes = Counter(await asyncio.gather(*(one() for _ in range(10_000))))
        assert set(outcomes) == {"2 tokens", "RESOURCE_EXHAUSTED"}
        assert outcomes["2 tokens"] >= 32
        assert (await system.generate("a", max_tokens=2, ignore_eos=True)).usage.num_completion_tokens == 2
