"""Notices a verifier that stands still while streams wait for it, long before its connection does.

A process that is stopped, or whose machine is, leaves its connections as they are: keepalive takes 12 s to see it, and
of an engine that hangs it sees nothing. So when a verifier has given no sign of life for a while, to any stream, it is
asked what it runs. One that answers lives, however busy it is; unless it says that its step takes many times what steps
take.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc

from gateway.model.attempts import Attempts, LostError, Use
from gateway.model.replica import Replica
from paceline.internal.v1 import model_server_pb2
from paceline.v1 import model_pb2
from services.verifier.client import VerifierClient, VerifyStream

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.1
_QUIET_SECONDS = 0.3
"""Usual models give signs many times as often, and asking one that computes a long prompt costs next to nothing."""
_ANSWER_SECONDS = 0.4
_NUM_QUESTIONS = 2
"""Unanswered ones in a row that show that a verifier stands still: an answer may be late once."""
_LATE_SECONDS = 0.2
"""A look that comes so much later than it should says that this process stood still itself, and nothing of others."""
_HUNG_STEPS, _HUNG_SECONDS = 20.0, 5.0
"""A step hangs that takes so many times the longest that was measured, and so long at least."""
VerifierUse: TypeAlias = Use[VerifierClient, model_pb2.ModelInfo]
VerifierAttempts: TypeAlias = Attempts[VerifierClient, model_pb2.ModelInfo]
VerifierReplica: TypeAlias = Replica[VerifierClient, model_pb2.ModelInfo]


class _Watched:
    """A stream that is let go of when its verifier stands still and there is another."""

    def __init__(self, use: VerifierUse, attempts: VerifierAttempts, stream: VerifyStream) -> None:
        self.reason = ""
        """Why it was let go of; empty while it was not."""
        self._replica = use.replica
        self._attempts = attempts
        self._stream = stream

    def has_another(self) -> bool:
        """Whether there is another verifier; those that were away are asked whether they still are."""
        return self._attempts.has_other_than(self._replica)

    def let_go(self, reason: str) -> None:
        """Ends the stream, so that it goes on elsewhere."""
        self.reason = reason
        self._stream.cancel()


class Vigil:
    """Looks after all verifiers of a model that have streams."""

    def __init__(self) -> None:
        self._watched: dict[VerifierReplica, set[_Watched]] = {}
        self._looking: dict[VerifierReplica, asyncio.Task[None]] = {}

    @contextmanager
    def over(self, use: VerifierUse, attempts: VerifierAttempts, stream: VerifyStream) -> Iterator[None]:
        """Watches over a stream while the block lasts, which ends with LostError when it is let go of."""
        watched, replica = _Watched(use, attempts, stream), use.replica
        streams = self._watched.setdefault(replica, set())
        streams.add(watched)
        if replica not in self._looking:
            self._looking[replica] = asyncio.create_task(self._look_after(replica, streams))
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not watched.reason or (task is not None and task.cancelling()):
                raise
            raise LostError(watched.reason) from None
        finally:
            streams.discard(watched)
            if not streams and self._watched.get(replica) is streams:
                del self._watched[replica]
                self._looking.pop(replica).cancel()

    async def _look_after(self, replica: VerifierReplica, streams: set[_Watched]) -> None:
        since, num_unanswered = time.monotonic(), 0
        while True:
            due = time.monotonic() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if now > due + _LATE_SECONDS:
                since, num_unanswered = now, 0
            if now - max(since, replica.heard_at) < _QUIET_SECONDS:
                num_unanswered = 0
                continue
            reason = await _what_is_wrong(replica.client)
            if not reason:
                since, num_unanswered = time.monotonic(), 0
                continue
            num_unanswered += 1
            movable = [watched for watched in streams if watched.has_another()]
            if movable and num_unanswered >= _NUM_QUESTIONS and replica.heard_at < now:
                _log.warning("verifier %s: %s; its streams go elsewhere", replica.client.target, reason)
                for watched in movable:
                    watched.let_go(reason)
                since, num_unanswered = time.monotonic(), 0


async def _what_is_wrong(client: VerifierClient) -> str:
    """Why a verifier cannot be waited for; empty where it lives, or where its connection is to say that it is gone."""
    try:
        return hangs(await client.describe(_ANSWER_SECONDS))
    except grpc.aio.AioRpcError as error:
        stands_still = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return "it stands still" if stands_still else ""


def hangs(answer: model_server_pb2.GetModelResponse) -> str:
    """Why a service with an engine is taken to hang; empty where it is not."""
    longest = max((each.seconds for each in answer.model_info.step_times), default=0.0)
    is_hung = answer.step_seconds > max(_HUNG_SECONDS, _HUNG_STEPS * longest)
    return f"its step takes {answer.step_seconds:.1f} s" if is_hung else ""
