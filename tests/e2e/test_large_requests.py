"""Requests as large as they may be are refused by what is counted first, or hold nobody up; larger are not read."""

from typing import Any

import grpc
import pytest

from paceline import InvalidArgumentError
from paceline.errors import from_call
from paceline.v1 import inference_pb2, inference_pb2_grpc
from support.system import System


async def _refusal(call: Any) -> InvalidArgumentError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if hasattr(call, "read") else call)
    error = from_call(caught.value)
    assert isinstance(error, InvalidArgumentError), error
    return error


@pytest.fixture
async def stub(system: System) -> Any:
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


async def test_more_messages_than_the_context_has_tokens_are_refused(stub: Any) -> None:
    request = inference_pb2.ChatRequest()
    request.messages.extend([inference_pb2.ChatMessage()] * 30_000)
    error = await _refusal(stub.Chat(request))
    assert error.violations[0].field == "messages"
    assert "30000 messages" in str(error)


@pytest.mark.parametrize("field", ["parts", "tools", "documents"])
async def test_more_pieces_of_a_conversation_than_the_context_has_tokens_are_refused(stub: Any, field: str) -> None:
    request = inference_pb2.ChatRequest(messages=[{"role": "user"}])
    if field == "parts":
        request.messages[0].parts.extend([inference_pb2.ContentPart(text="")] * 15_000)
    else:
        getattr(request, field).extend([""] * 15_000)
    error = await _refusal(stub.Chat(request))
    assert error.violations[0].field == "messages"
    assert "15001 messages, parts" in str(error)


async def test_what_roles_are_called_counts_as_text(stub: Any) -> None:
    message = inference_pb2.ChatMessage(role="x" * 60_000, content="y" * (4 << 20))
    error = await _refusal(stub.Chat(inference_pb2.ChatRequest(messages=[message])))
    assert error.violations[0].field == "messages"


async def test_more_token_ids_than_are_detokenized_are_refused(stub: Any) -> None:
    error = await _refusal(stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[65] * (3 << 20))))
    assert "3145728 token ids" in str(error)
    text = (await stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[40] * 100_000))).text
    ids = (await stub.Tokenize(inference_pb2.TokenizeRequest(text=text))).token_ids
    assert list(ids) == [40] * 100_000


async def test_a_prompt_of_ids_is_refused_by_its_length_before_its_ids_are_looked_at(stub: Any) -> None:
    ids = inference_pb2.TokenIds(ids=[1] * 1_000_000 + [1 << 30])
    error = await _refusal(stub.Generate(inference_pb2.GenerateRequest(token_ids=ids)))
    assert "1000001 tokens" in str(error)


@pytest.mark.parametrize("field", ["stop", "logit_bias"])
async def test_too_many_of_anything_are_one_sentence(stub: Any, field: str) -> None:
    many: Any = {"stop": ["x" * 300] * 200, "logit_bias": {999 + number: 1e9 for number in range(5_000)}}[field]
    error = await _refusal(stub.Generate(inference_pb2.GenerateRequest(prompt="a", sampling={field: many})))
    assert [violation.field for violation in error.violations] == [f"sampling.{field}"]
    assert str(len(many)) in str(error)


@pytest.mark.parametrize(
    "request_",
    [
        inference_pb2.ChatRequest(messages=[{}] * 1_000_000),
        inference_pb2.ChatRequest(messages=[{"parts": [{"text": ""}] * 300_000}]),
        inference_pb2.ChatRequest(messages=[{"role": "x" * (3 << 20), "content": "y"}]),
        inference_pb2.ChatRequest(messages=[{"role": "user"}], sampling={"bad_words": ["x" * 300] * 10_000}),
    ],
    ids=["messages", "parts", "role", "bad words"],
)
async def test_what_is_larger_than_any_request_is_refused_unread(stub: Any, request_: Any) -> None:
    assert (await _refusal(stub.Chat(request_))).violations[0].field == "request"


async def test_a_prompt_that_is_longer_than_any_may_be_is_refused_by_its_length(stub: Any) -> None:
    request = inference_pb2.GenerateRequest(prompt="x" * (6 << 20))
    assert "6291456 bytes" in str(await _refusal(stub.Generate(request)))
    assert "6291456 bytes" in str(await _refusal(stub.Tokenize(inference_pb2.TokenizeRequest(text=request.prompt))))
