"""Requests are refused by their size before messages are made of them; files come in pieces of any size."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.grpc_api.bounds import SMALL_BYTES, _num_beside
from paceline import InvalidArgumentError, NotFoundError, PacelineError
from paceline.errors import from_call
from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    batch_pb2,
    batch_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway

DATA = batch_pb2.CreateBatchRequest.DATA_FIELD_NUMBER


@given(
    data=st.binary(max_size=300),
    metadata=st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=9),
    most=st.integers(0, 400),
)
def test_what_lies_beside_data_is_counted(data: bytes, metadata: dict[str, str], most: int) -> None:
    message = batch_pb2.CreateBatchRequest(options={"metadata": metadata}, data=data).SerializeToString()
    beside = _num_beside(message, DATA, most)
    expected = len(message) - len(data)
    assert beside == expected or most < beside <= expected


@given(st.binary(max_size=200))
def test_any_bytes_are_counted(message: bytes) -> None:
    assert _num_beside(message, DATA, 50) >= 0


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
    ):
        error = await refusal(call)
        assert isinstance(error, InvalidArgumentError)
        assert "exceed the limit of 65536 bytes" in str(error)


async def test_a_file_comes_in_pieces_of_any_size(channel: grpc.aio.Channel) -> None:
    first = batch_pb2.CreateBatchRequest(options={}, data=b"x" * (4 << 20))
    error = await refusal(batch_pb2_grpc.BatchServiceStub(channel).CreateBatch(iter([first])))
    assert "exceed the limit" not in str(error)
