"""Requests are refused by their size before messages are made of them; files come in pieces of any size."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from paceline import InvalidArgumentError, NotFoundError, PacelineError
from paceline.errors import from_call
from paceline.internal.v1 import adapter_store_pb2, draft_pb2, prefix_cache_pb2, speculation_pb2, verifier_pb2
from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    batch_pb2,
    batch_pb2_grpc,
    inference_pb2,
    model_pb2,
    model_pb2_grpc,
    sampling_pb2,
)
from services.common.request_size import _LARGE, _MOST, SMALL_BYTES, _Large, check_size, num_beside
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway

DATA = batch_pb2.CreateBatchRequest.DATA_FIELD_NUMBER


FILE = {DATA: _Large(is_numbers=False, within={})}


@given(
    data=st.binary(max_size=300),
    metadata=st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=9),
    most=st.integers(0, 400),
)
def test_what_lies_beside_data_is_counted(data: bytes, metadata: dict[str, str], most: int) -> None:
    message = batch_pb2.CreateBatchRequest(options={"metadata": metadata}, data=data).SerializeToString()
    beside = num_beside(message, FILE, most)
    expected = len(message) - len(data)
    assert beside == expected or most < beside <= expected


@given(st.binary(max_size=200))
def test_any_bytes_are_counted(message: bytes) -> None:
    assert (
        num_beside(message, {**FILE, 1: _Large(is_numbers=False, within={1: _Large(is_numbers=True, within={})})}, 50)
        >= 0
    )


def test_a_number_without_an_end_is_not_read_to_it() -> None:
    """Reading a million bytes of one takes a quarter of a minute."""
    began = time.monotonic()
    assert num_beside(b"\xff" * 1_000_000, {}, SMALL_BYTES) <= 1_000_000
    assert time.monotonic() - began < 1


MILLIONS = 3_000_000
_IDS, _FEW = range(100_000, 400_000), range(1_000)
_MANY_IDS = sampling_pb2.SamplingParams(stop_token_ids=[1] * MILLIONS)
_MODULES = [{"name": f"model.layers.{at}.self_attn.q_proj", "in_features": 4096} for at in range(4_000)]


@pytest.mark.parametrize(
    "message",
    [
        inference_pb2.GenerateRequest(prompt="x" * MILLIONS),
        inference_pb2.GenerateRequest(token_ids={"ids": _IDS}),
        inference_pb2.ChatRequest(messages=[{"role": "user", "content": "x" * 1000}] * 4000),
        inference_pb2.ChatRequest(messages=[{"role": "user", "parts": [{"text": "x" * 1000}] * 2000}]),
        inference_pb2.TokenizeRequest(text="x" * MILLIONS),
        inference_pb2.DetokenizeRequest(token_ids=_IDS),
        adapter_store_pb2.StoreAdapterRequest(header={"base": {"modules": _MODULES}}),
        prefix_cache_pb2.MatchBlocksRequest(namespace="a", keys=[b"k" * 32] * 65_536),
        prefix_cache_pb2.StoreBlocksRequest(piece={"key": b"k" * 32, "data": b"x" * MILLIONS}),
        verifier_pb2.VerifyRequest(open=speculation_pb2.Open(token_ids=_IDS)),
        draft_pb2.ProposeRequest(open=speculation_pb2.Open(token_ids=_IDS, bad_words=[{"token_ids": _FEW}] * 64)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_people_send_is_taken_however_long(message: Message) -> None:
    check_size(message.SerializeToString(), message.DESCRIPTOR)


@pytest.mark.parametrize(
    "message",
    [
        inference_pb2.GenerateRequest(prompt="x", sampling=_MANY_IDS),
        inference_pb2.GenerateRequest(sampling={"bad_words": [""] * SMALL_BYTES}),
        inference_pb2.ChatRequest(messages=[{}] * SMALL_BYTES),
        inference_pb2.ChatRequest(tools=[""] * SMALL_BYTES),
        inference_pb2.ChatRequest(messages=[{"parts": [{}] * SMALL_BYTES}]),
        inference_pb2.TokenizeRequest(model="x" * MILLIONS),
        verifier_pb2.VerifyRequest(open={"sampling": _MANY_IDS}),
        verifier_pb2.VerifyRequest(open={"bad_words": [{}] * SMALL_BYTES}),
        verifier_pb2.VerifyRequest(proposal={"token_ids": _IDS}),
        draft_pb2.ProposeRequest(commit={"token_ids": _IDS}),
        prefix_cache_pb2.MatchBlocksRequest(keys=[b""] * MILLIONS),
        inference_pb2.DetokenizeRequest(token_ids=[1] * MILLIONS),
        inference_pb2.GenerateRequest(token_ids={"ids": [200] * MILLIONS}),
        verifier_pb2.VerifyRequest(open={"bad_words": [{"token_ids": range(MILLIONS // 3)}] * 3}),
        prefix_cache_pb2.DeleteNamespaceRequest(namespace="x" * MILLIONS),
        health_pb2.HealthCheckRequest(service="x" * MILLIONS),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="x" * MILLIONS),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_nobody_needs_is_refused_before_a_message_is_made(message: Message) -> None:
    with pytest.raises(InvalidArgumentError, match="exceed the limit of"):
        check_size(message.SerializeToString(), message.DESCRIPTOR)


def test_what_may_be_large_exists() -> None:
    pool = descriptor_pool.Default()
    for name, fields in _LARGE.items():
        assert set(fields) <= set(pool.FindMessageTypeByName(name).fields_by_name)
    assert set(_MOST) <= set(_LARGE)


@pytest.fixture
async def channel(start_gateway: StartGateway) -> AsyncIterator[grpc.aio.Channel]:
    async with serve_fakes(FakeVerifier()) as verifier, start_gateway([verifier]) as system:
        async with grpc.aio.insecure_channel(system.gateway) as made:
            yield made


async def refusal(call: Any) -> PacelineError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call(caught.value)


async def test_what_is_larger_than_any_request_is_refused_unread(channel: grpc.aio.Channel) -> None:
    models, batches = model_pb2_grpc.ModelServiceStub(channel), batch_pb2_grpc.BatchServiceStub(channel)
    adapters = adapter_pb2_grpc.AdapterServiceStub(channel)
    small, large = "x" * (SMALL_BYTES // 2), "x" * SMALL_BYTES
    assert isinstance(await refusal(models.GetModel(model_pb2.GetModelRequest(model=small))), NotFoundError)
    files = adapter_pb2.AdapterUpload(files=[adapter_pb2.AdapterFile()] * SMALL_BYTES)
    for call in (
        models.GetModel(model_pb2.GetModelRequest(model=large)),
        batches.ListBatches(batch_pb2.ListBatchesRequest(states=[batch_pb2.BATCH_STATE_RUNNING] * SMALL_BYTES)),
        batches.CreateBatch(iter([batch_pb2.CreateBatchRequest(options={"metadata": {"a": large}})])),
        adapters.UploadAdapter(iter([adapter_pb2.UploadAdapterRequest(upload=files)])),
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=large)),
    ):
        error = await refusal(call)
        assert isinstance(error, InvalidArgumentError)
        assert "exceed the limit of 65536 bytes" in str(error)


async def test_a_file_comes_in_pieces_of_any_size(channel: grpc.aio.Channel) -> None:
    first = batch_pb2.CreateBatchRequest(options={}, data=b"x" * (4 << 20))
    error = await refusal(batch_pb2_grpc.BatchServiceStub(channel).CreateBatch(iter([first])))
    assert "exceed the limit" not in str(error)
