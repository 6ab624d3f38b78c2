"""Domain errors arrive as gRPC statuses with google.rpc details, in unary and streaming calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2

from paceline.client import error_details
from paceline.internal.v1 import verifier_pb2, verifier_pb2_grpc
from paceline.v1 import model_pb2, model_pb2_grpc
from services.common.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    PacelineError,
    QuotaExceededError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.server import Served
from support.system import served

ERRORS: list[tuple[Exception, grpc.StatusCode]] = [
    (InvalidArgumentError("a.b", "must be 1", FieldViolation("c", "too long")), grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError("model", "x"), grpc.StatusCode.NOT_FOUND),
    (ResourceExhaustedError("full", retry_after_seconds=1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (AlreadyExistsError("adapter", "x"), grpc.StatusCode.ALREADY_EXISTS),
    (QuotaExceededError("tenant", "has all it may"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceededError("took too long"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (UnavailableError("away"), grpc.StatusCode.UNAVAILABLE),
    (PacelineError("?"), grpc.StatusCode.INTERNAL),
    (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL),
]


class Raising(model_pb2_grpc.ModelServiceServicer, verifier_pb2_grpc.VerifierServiceServicer):
    """Raises what it is told to."""

    error: Exception = ValueError()

    async def ListModels(self, request: object, context: object) -> model_pb2.ListModelsResponse:
        raise self.error

    async def GetModel(self, request: object, context: grpc.aio.ServicerContext) -> model_pb2.GetModelResponse:
        await context.abort(grpc.StatusCode.DATA_LOSS, "on purpose")
        raise AssertionError

    async def Verify(self, request_iterator: object, context: object) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        yield verifier_pb2.VerifyResponse()
        raise self.error


@pytest.fixture
async def raising() -> AsyncIterator[tuple[Raising, grpc.aio.Channel]]:
    servicer = Raising()

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server)
        yield Served(())

    async with served(lifespan) as address, grpc.aio.insecure_channel(address) as channel:
        yield servicer, channel


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("streaming", [False, True])
async def test_statuses(
    raising: tuple[Raising, grpc.aio.Channel], error: Exception, code: grpc.StatusCode, streaming: bool
) -> None:
    servicer, channel = raising
    servicer.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if streaming:
            async for _ in verifier_pb2_grpc.VerifierServiceStub(channel).Verify(iter([verifier_pb2.VerifyRequest()])):
                pass
        else:
            await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
    assert caught.value.code() is code
    details = error_details(caught.value)
    match error:
        case InvalidArgumentError():
            assert [(v.field, v.description) for v in details[0].field_violations] == list(error.violations)
        case NotFoundError():
            assert (details[0].resource_type, details[0].resource_name) == ("model", "x")
        case AlreadyExistsError():
            assert (details[0].resource_type, details[0].resource_name) == ("adapter", "x")
        case QuotaExceededError():
            assert [(v.subject, v.description) for v in details[0].violations] == [("tenant", "has all it may")]
        case ResourceExhaustedError():
            assert details[0].retry_delay.ToTimedelta().total_seconds() == 1.5
        case _:
            assert details == []
            assert "secret" not in caught.value.details()
    assert all(type(detail).__module__ == error_details_pb2.__name__ for detail in details)


async def test_a_deliberate_abort_passes(raising: tuple[Raising, grpc.aio.Channel]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await model_pb2_grpc.ModelServiceStub(raising[1]).GetModel(model_pb2.GetModelRequest())
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.details() == "on purpose"
