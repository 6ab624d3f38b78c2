"""One sequence between a verifier and a draft: commits out, whatever dies on the way.

Losing a verifier means opening the sequence on another one (or on the same, once it is back) with the prompt and the
tokens so far; the tokens that follow are the ones that would have followed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import grpc

from gateway.generation.drafting import Drafting
from gateway.model.replicas import ServicePool
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import sampling_pb2
from services.common.errors import UnavailableError
from services.verifier.client import VerifierClient, VerifyStream

_log = logging.getLogger(__name__)
_FIRST_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }
)
"""Statuses of a verifier that is gone or going. All others are its answer to the request."""


class Relay:
    """Runs one sequence to its end."""

    def __init__(
        self,
        pool: ServicePool,
        opening: speculation_pb2.Open,
        draft_adapter: str,
        token: Callable[[], str],
        resume_seconds: float,
        time_remaining: Callable[[], float | None],
    ) -> None:
        """`draft_adapter` is the digest of the draft's adapter, or empty; `token` gives a fresh one of the tenant's."""
        self._pool = pool
        self._opening = opening
        self._draft_adapter = draft_adapter
        self._token = token
        self._resume_seconds = resume_seconds
        self._time_remaining = time_remaining
        self._produced: list[int] = []
        self._stream: VerifyStream | None = None
        self.num_resumed = 0

    async def commits(self) -> AsyncIterator[speculation_pb2.Commit]:
        """Yields commits until one has a finish reason.

        Raises UnavailableError when no verifier could be had for too long, grpc.aio.AioRpcError with the status of a
        verifier that refuses the request.
        """
        drafting = Drafting(self._pool, self._draft_message, self._token, self._propose)
        avoid: VerifierClient | None = None
        backoff, give_up = _FIRST_BACKOFF_SECONDS, None
        try:
            while True:
                verifier = self._pool.verifier(avoid, self._opening.adapter_digest)
                try:
                    async for commit in self._run(verifier, drafting):
                        backoff, give_up = _FIRST_BACKOFF_SECONDS, None
                        yield commit
                        if commit.finish_reason != sampling_pb2.FINISH_REASON_UNSPECIFIED:
                            return
                    reason = "the stream ended early"
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _LOST:
                        raise
                    reason = f"{error.code().name}: {error.details()}"
                except asyncio.InvalidStateError:
                    reason = "the stream broke while it was opened"
                now = time.monotonic()
                give_up = give_up or now + self._resume_seconds
                if now >= give_up:
                    raise UnavailableError(f"no verifier could be reached ({reason})", retry_after_seconds=1.0)
                _log.warning("verifier %s lost (%s); resuming elsewhere", verifier.target, reason)
                avoid = verifier
                self.num_resumed += 1
                await asyncio.sleep(backoff)
                backoff = min(_MAX_BACKOFF_SECONDS, 2 * backoff)
        finally:
            drafting.stop()

    async def _run(self, verifier: VerifierClient, drafting: Drafting) -> AsyncIterator[speculation_pb2.Commit]:
        async with self._pool.counted(verifier, verifier.verify(self._time_remaining(), self._token())) as stream:
            await stream.open(self._open_message())
            self._stream = stream
            try:
                if self._opening.max_draft_tokens and self._pool.wants_proposals(verifier):
                    drafting.start()
                while (commit := await stream.next_commit()) is not None:
                    self._produced.extend(commit.token_ids)
                    self._pool.note(verifier, commit)
                    if self._opening.max_draft_tokens:
                        drafting.commit(commit)
                    yield commit
            finally:
                self._stream = None

    async def _propose(self, proposal: speculation_pb2.Proposal) -> None:
        """Passes a proposal on to the verifier of the moment; one that comes between two verifiers is dropped."""
        if self._stream is None:
            return
        try:
            await self._stream.propose(proposal)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            _log.debug("the verifier's stream ended before a proposal could be passed on")

    def _open_message(self) -> speculation_pb2.Open:
        """An Open with all tokens so far."""
        message = speculation_pb2.Open()
        message.CopyFrom(self._opening)
        message.token_ids.extend(self._produced)
        return message

    def _draft_message(self) -> speculation_pb2.Open:
        """The same for a draft, which has adapters of its own."""
        message = self._open_message()
        message.adapter_digest = self._draft_adapter
        message.model = ""  # It names the target; whether a draft suits that is known here.
        return message
