"""Turns domain errors into gRPC statuses with google.rpc details, for all four kinds of call."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from paceline.errors import InternalError, InvalidArgumentError, PacelineError

_log = logging.getLogger(__name__)

_DETAILS_KEY = "grpc-status-details-bin"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler. Deliberate aborts and cancellations pass; unknown errors are logged and become INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        wrap = _wrap_stream if handler.response_streaming else _wrap_unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            wrap(getattr(handler, kind), handler_call_details.method),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Undecodable(NamedTuple):
    """Stands for a request that is no message of its type, or must not be made one."""

    error: PacelineError


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Hands undecodable requests on, so that they are answered with INVALID_ARGUMENT and not with INTERNAL."""

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data) if deserialize is not None else data
        except (DecodeError, UnicodeDecodeError) as error:
            return _Undecodable(InvalidArgumentError("request", f"not a message of its type: {error}"))
        except PacelineError as error:
            return _Undecodable(error)

    return decode


def _check_decoded(request: Any) -> None:
    if isinstance(request, _Undecodable):
        raise request.error


async def _decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _check_decoded(request)
        yield request


def _wrap_unary(method: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            if hasattr(request, "__aiter__"):
                return await method(_decoded(request), context)
            _check_decoded(request)
            return await method(request, context)
        except Exception as error:
            await _abort(context, error, name)

    return call


def _wrap_stream(method: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        streaming = hasattr(request, "__aiter__")
        responses = None
        try:
            if not streaming:
                _check_decoded(request)  # Before the method is called: it may return a coroutine, to be awaited.
            responses = method(_decoded(request) if streaming else request, context)
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
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    if isinstance(error, grpc.aio.AioRpcError):
        # Another service's answer to a call made on this caller's behalf.
        details = tuple(pair for pair in error.trailing_metadata() if pair[0] == _DETAILS_KEY)
        await context.abort(error.code(), error.details(), details)
    if not isinstance(error, PacelineError):
        _log.error("%s failed", name, exc_info=error)
        error = InternalError("internal error; the server's log says more")
    details = ((_DETAILS_KEY, error.to_status().SerializeToString()),)
    await context.abort(error.code, str(error), details)
