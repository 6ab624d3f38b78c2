"""Turns domain errors into gRPC statuses with google.rpc details, for all four kinds of call."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from paceline.errors import DETAILS_KEY, DeadlineExceededError, InternalError, InvalidArgumentError, PacelineError
from services.common.request_size import check_size

_log = logging.getLogger(__name__)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler. Deliberate aborts and cancellations pass; unknown errors are logged and become INTERNAL.

    A call whose message does not come is answered too, which gRPC leaves undone: one that was to have a message and has
    none is INVALID_ARGUMENT, one that has not sent its first after a while DEADLINE_EXCEEDED.
    """

    def __init__(self, first_seconds: float, admit: Callable[[str, Any], None] | None = None) -> None:
        """`first_seconds` is the longest wait for the first message of a call.

        `admit` is called with each call's method and context, and raises for who may not call it.
        """
        self._first_seconds = first_seconds
        self._admit = admit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            if self._admit is None:
                return None
            handler = grpc.stream_unary_rpc_method_handler(_unimplemented)
        answer = "stream" if handler.response_streaming else "unary"
        method = getattr(handler, f"{'stream' if handler.request_streaming else 'unary'}_{answer}")
        wrap = _wrap_stream if handler.response_streaming else _wrap_unary
        begin = partial(_begin, method, self._first_seconds, takes_stream=handler.request_streaming)
        if self._admit is not None:
            admit = partial(self._admit, handler_call_details.method)
            begin = partial(_admitted, begin, admit, self._first_seconds, takes_stream=handler.request_streaming)
        # Also where the method takes one message the call is served as one of many: gRPC does not tell of none.
        make = getattr(grpc, f"stream_{answer}_rpc_method_handler")
        return make(
            wrap(begin, handler_call_details.method),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Undecodable(NamedTuple):
    """Stands for a request that is no message of its type, or must not be made one."""

    error: PacelineError


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Hands undecodable requests on, so that they are answered with INVALID_ARGUMENT and not with INTERNAL."""
    message_class = getattr(deserialize, "__self__", None)
    descriptor = getattr(message_class, "DESCRIPTOR", None)

    def decode(data: bytes) -> Any:
        try:
            if descriptor is not None:
                check_size(data, descriptor)
            return deserialize(data) if deserialize is not None else data
        except (DecodeError, UnicodeDecodeError) as error:
            return _Undecodable(InvalidArgumentError("request", f"not a message of its type: {error}"))
        except PacelineError as error:
            return _Undecodable(error)

    return decode


async def _decoded(messages: AsyncIterator[Any], first_seconds: float) -> AsyncIterator[Any]:
    """The messages of a call, of which the first must come in time. Raises what an undecodable one stands for."""
    messages = aiter(messages)
    message = await _in_time(anext(messages, grpc.aio.EOF), first_seconds)
    while message is not grpc.aio.EOF:
        yield _checked(message)
        message = await anext(messages, grpc.aio.EOF)


async def _in_time(first: Awaitable[Any], seconds: float) -> Any:
    """The first message of a call, or EOF. Raises DeadlineExceededError."""
    try:
        async with asyncio.timeout(seconds):
            return await first
    except TimeoutError as error:
        raise DeadlineExceededError(f"no message came within {seconds:g} s") from error


def _checked(message: Any) -> Any:
    if isinstance(message, _Undecodable):
        raise message.error
    return message


async def _begin(
    method: Callable[[Any, Any], Any], first_seconds: float, requests: Any, context: Any, *, takes_stream: bool
) -> Any:
    """Calls a method with the messages of a call, or with the one that it takes; returns what it returns."""
    if takes_stream:
        return method(_decoded(requests, first_seconds), context)
    message = await _in_time(context.read(), first_seconds)
    if message is grpc.aio.EOF:
        raise InvalidArgumentError("request", "a message must be sent")
    return method(_checked(message), context)


async def _admitted(
    begin: Callable[[Any, Any], Awaitable[Any]],
    admit: Callable[[Any], None],
    first_seconds: float,
    requests: Any,
    context: Any,
    *,
    takes_stream: bool,
) -> Any:
    """Begins a call whose caller may make it."""
    try:
        admit(context)
    except PacelineError:
        if takes_stream:
            # To gRPC's asyncio client what fails is its own write, where it is answered while it is at that.
            await _in_time(anext(aiter(requests), grpc.aio.EOF), first_seconds)
        raise
    return await begin(requests, context)


async def _unimplemented(_: Any, context: Any) -> None:
    """Answers as gRPC does where there is no such method, to those who may call some."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def _wrap_unary(begin: Callable[[Any, Any], Awaitable[Any]], name: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(requests: Any, context: Any) -> Any:
        try:
            return await (await begin(requests, context))
        except Exception as error:
            await _abort(context, error, name)

    return call


def _wrap_stream(begin: Callable[[Any, Any], Awaitable[Any]], name: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def call(requests: Any, context: Any) -> AsyncIterator[Any]:
        responses: Any = None
        try:
            responses = await begin(requests, context)
            if hasattr(responses, "__aiter__"):
                async for response in responses:
                    yield response
            else:
                await responses
        except Exception as error:
            await _abort(context, error, name)
        finally:
            if hasattr(responses, "aclose"):
                await responses.aclose()

    return call


async def _abort(context: Any, error: Exception, name: str) -> None:
    # With InternalError gRPC says that the client has gone while something was sent to it.
    if isinstance(error, grpc.aio.AbortError | grpc.aio.InternalError | asyncio.CancelledError):
        raise error
    if isinstance(error, grpc.aio.AioRpcError):
        # Another service's answer to a call made on this caller's behalf.
        details = tuple(pair for pair in error.trailing_metadata() if pair[0] == DETAILS_KEY)
        await context.abort(error.code(), error.details(), details)
    if not isinstance(error, PacelineError):
        _log.error("%s failed", name, exc_info=error)
        error = InternalError("internal error; the server's log says more")
    status = error.to_status()
    await context.abort(error.code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
