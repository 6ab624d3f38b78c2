"""A request that outlives its gateway: another goes on where the stream broke, and whoever reads it sees a pause."""

import asyncio
import copy
import random
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar

import grpc

from paceline.calls import raising
from paceline.errors import from_call, has_details
from paceline.several import SeveralChannel
from paceline.v1 import inference_pb2

R = TypeVar("R", inference_pb2.GenerateRequest, inference_pb2.ChatRequest)
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a stream ends with whose gateway died, or stopped before it was done."""
_ROUNDS = 4
"""How often all gateways are tried in turn before the next event."""
_PAUSE_SECONDS = 0.25
"""The longest pause before the second round; it doubles with each."""


async def resumed_events(
    start: Callable[..., Any], request: R, channel: SeveralChannel, timeout: float | None
) -> AsyncGenerator[Any, None]:
    """The events of a request, whichever gateways of a channel are lost on the way.

    `start` calls the method with a request and a time-out. Raises what a gateway refuses, and what the last one ended
    with when none can be had.
    """
    received = Received(request)
    until = None if timeout is None else time.monotonic() + timeout
    num_lost = 0
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        call = start(received.next_request(), timeout=left)
        at = channel.in_use
        try:
            async for response in call:
                num_lost = 0
                if received.take(response):
                    yield response
            return
        except asyncio.CancelledError:
            with raising():
                raise
        except grpc.aio.AioRpcError as error:
            if received.is_complete:
                return
            num_lost += 1
            # What a gateway answers by itself another may answer otherwise, but waiting for that is for who asks.
            most = len(channel) - 1 if has_details(error) else _ROUNDS * len(channel)
            if error.code() not in _LOST or num_lost > most:
                raise from_call(error) from error
            channel.lost(at)
        finally:
            call.cancel()
        if num_lost % len(channel) == 0:
            longest = _PAUSE_SECONDS * 2 ** (num_lost // len(channel) - 1)
            await asyncio.sleep(random.uniform(longest / 2, longest))


class Received(Generic[R]):
    """What was received of a request."""

    def __init__(self, request: R) -> None:
        self._request: R = request
        self._started: inference_pb2.Started | None = None
        self._choices: dict[int, inference_pb2.ReceivedChoice] = {}
        self._finished: set[int] = set()
        self._began_at = self._first_at = 0.0
        self._was_resumed = False
        self.is_complete = False

    def next_request(self) -> R:
        """What the next gateway is sent."""
        if self._started is None:
            return self._request
        request = copy.deepcopy(self._request)
        request.model = self._started.model
        request.sampling.CopyFrom(self._started.sampling)
        none = inference_pb2.ReceivedChoice()
        request.resume.CopyFrom(
            inference_pb2.Resume(
                request_id=self._started.request_id,
                revision_digest=self._started.revision_digest,
                adapter_digest=self._started.adapter_digest,
                choices=[self._choices.get(index, none) for index in range(max(self._choices, default=-1) + 1)],
            )
        )
        self._was_resumed = True
        return request

    def take(self, response: Any) -> bool:
        """Takes note of what came; whether it is new. Times are made those of the whole request."""
        kind = response.WhichOneof("event")
        if kind == "started":
            return self._start(response.started)
        if kind == "delta":
            self._add(response.delta)
        elif kind == "finished":
            is_new = response.finished.choice not in self._finished
            self._finished.add(response.finished.choice)
            return is_new
        elif kind == "usage":
            self.is_complete = True
            if self._was_resumed:
                response.usage.total_seconds = time.monotonic() - self._began_at
                response.usage.time_to_first_token_seconds = max(0.0, self._first_at - self._began_at)
        return True

    def _start(self, started: inference_pb2.Started) -> bool:
        is_new = self._started is None
        if is_new:
            self._started, self._began_at = started, time.monotonic()
        return is_new

    def _add(self, delta: inference_pb2.Delta) -> None:
        self._first_at = self._first_at or time.monotonic()
        choice = self._choices.setdefault(delta.choice, inference_pb2.ReceivedChoice())
        choice.token_ids.extend(delta.token_ids)
        choice.num_drafted_tokens += delta.num_drafted_tokens
        choice.num_accepted_tokens += delta.num_accepted_tokens
        choice.num_rounds += 1
