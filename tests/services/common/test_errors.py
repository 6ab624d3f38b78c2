"""Domain errors arrive as gRPC statuses with google.rpc details, in unary and streaming calls."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from paceline.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PacelineError,
    QuotaExceededError,
    ResourceExhaustedError,
    UnavailableError,
    from_call,
)
from paceline.internal.v1 import verifier_pb2, verifier_pb2_grpc
from paceline.v1 import model_pb2, model_pb2_grpc
from services.common.server import Served
from support.served import SERVER, served

ERRORS: list[PacelineError] = [
    InvalidArgumentError("a.b", "must be 1", FieldViolation("c", "too long")),
    NotFoundError("model", "x"),
    ResourceExhaustedError("full", retry_after_seconds=1.5),
    AlreadyExistsError("adapter", "x", "and may not be moved"),
    QuotaExceededError("tenant", "has all it may"),
    DeadlineExceededError("took too long"),
    UnavailableError("away"),
    UnavailableError("away", retry_after_seconds=0.25),
    FailedPreconditionError("another revision", "REVISION_CHANGED"),
    AbortedError("numbers that are not finite", "BROKEN"),
    InternalError("?"),
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


class Reading(verifier_pb2_grpc.VerifierServiceServicer):
    """Answers every message."""

    async def Verify(
        self, request_iterator: AsyncIterator[verifier_pb2.VerifyRequest], context: object
    ) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        async for _ in request_iterator:
            yield verifier_pb2.VerifyResponse()


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


@pytest.mark.parametrize("text", ["x" * 5_000_000, "\u00e9" * 9_000, "\U0001f4a3" * 5_000], ids=["long", "two", "four"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_what_callers_name_at_any_length_is_answered_in_brief(
    raising: tuple[Raising, grpc.aio.Channel], text: str, streaming: bool
) -> None:
    """All that is said of an error travels in headers, whose size is limited: else callers would be told of that."""
    many = [FieldViolation(f"names[{number}]", text[:100]) for number in range(1_000)]
    for error in (
        NotFoundError("model", text),
        AlreadyExistsError("adapter", text, text),
        QuotaExceededError(text, text),
        InvalidArgumentError(text, text, *many),
    ):
        got = await _raised(*raising, error, streaming=streaming)
        assert type(got) is type(error)
        assert str(got)[:100] == str(error)[:100]
        assert bool(got.violations) == bool(error.violations)
        assert bool(got.resource_name) == bool(error.resource_name)


async def test_bytes_that_are_no_message_are_refused_before_the_method_is_called(
    raising: tuple[Raising, grpc.aio.Channel],
) -> None:
    _, channel = raising
    call = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    gc.collect()  # A coroutine that nobody awaited would say so now.


@pytest.mark.parametrize("method", ["Health/Check", "Health/Watch", "Health/List"])
async def test_a_call_without_the_message_that_it_takes_is_answered(
    raising: tuple[Raising, grpc.aio.Channel], method: str
) -> None:
    _, channel = raising
    call = channel.stream_stream(f"/grpc.health.v1.{method}")(iter(()), timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert from_call(caught.value).violations[0].field == "request"


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", "paceline.internal.v1.VerifierService/Verify"])
async def test_a_call_that_sends_nothing_ends_after_a_while(method: str) -> None:
    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(Reading(), server)
        yield Served(())

    settings = SERVER.model_copy(update={"first_message_seconds": 0.05})
    async with served(lifespan, settings) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{method}")(timeout=20)
        with pytest.raises(grpc.aio.AioRpcError, match=r"no message came within 0\.05 s"):
            await call.read()


@pytest.mark.parametrize("error", ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_error_arrives_as_it_was_raised(
    raising: tuple[Raising, grpc.aio.Channel], error: PacelineError, streaming: bool
) -> None:
    got = await _raised(*raising, error, streaming=streaming)
    assert type(got) is type(error)
    assert str(got) == str(error)
    for name in ("code", "violations", "resource_type", "resource_name", "subject", "reason", "retry_after_seconds"):
        assert getattr(got, name) == getattr(error, name), name


@pytest.mark.parametrize("streaming", [False, True])
async def test_what_is_not_meant_for_callers_is_not_told(
    raising: tuple[Raising, grpc.aio.Channel], streaming: bool
) -> None:
    got = await _raised(*raising, ZeroDivisionError("secret"), streaming=streaming)
    assert type(got) is InternalError
    assert "secret" not in str(got)


async def test_a_client_that_is_gone_is_no_error_of_the_service(
    raising: tuple[Raising, grpc.aio.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    for error in (grpc.aio.InternalError("execute_batch"), ZeroDivisionError("meant to be logged")):
        await _raised(*raising, error, streaming=False)
    logged = [record for record in caplog.records if record.name == "services.common.interceptors"]
    assert [record.exc_info[0] for record in logged if record.exc_info] == [ZeroDivisionError]


async def _raised(servicer: Raising, channel: grpc.aio.Channel, error: Exception, *, streaming: bool) -> PacelineError:
    servicer.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if streaming:
            async for _ in verifier_pb2_grpc.VerifierServiceStub(channel).Verify(iter([verifier_pb2.VerifyRequest()])):
                pass
        else:
            await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
    return from_call(caught.value)


class Call:
    """A failed call of another service."""

    def __init__(self, code: grpc.StatusCode, details: str, *trailing: tuple[str, bytes]) -> None:
        self._values = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._values[0]

    def details(self) -> str:
        return self._values[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._values[2]


def test_details_that_nobody_knows_are_left_alone() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="gone")
    status.details.add().Pack(error_details_pb2.Help())
    status.details.add(type_url="type.googleapis.com/somebody.Elses", value=b"\x01")
    status.details.add().Pack(error_details_pb2.ResourceInfo(resource_type="model", resource_name="x"))
    got = from_call(Call(grpc.StatusCode.NOT_FOUND, "gone", ("grpc-status-details-bin", status.SerializeToString())))
    assert isinstance(got, NotFoundError)
    assert got.resource_name == "x"


@pytest.mark.parametrize("trailing", [b"\xff", b"\x08\x03\x12\x01x"], ids=["no message", "another status"])
def test_details_that_are_broken_do_not_hide_the_status(trailing: bytes) -> None:
    got = from_call(Call(grpc.StatusCode.UNAVAILABLE, "away", ("grpc-status-details-bin", trailing)))
    assert isinstance(got, UnavailableError)
    assert str(got) == "away"


def test_a_status_without_an_error_of_its_own_keeps_its_code() -> None:
    got = from_call(Call(grpc.StatusCode.UNIMPLEMENTED, ""))
    assert type(got) is PacelineError
    assert got.code is grpc.StatusCode.UNIMPLEMENTED
    assert str(got) == "UNIMPLEMENTED"


async def test_a_deliberate_abort_passes(raising: tuple[Raising, grpc.aio.Channel]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await model_pb2_grpc.ModelServiceStub(raising[1]).GetModel(model_pb2.GetModelRequest())
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.details() == "on purpose"
