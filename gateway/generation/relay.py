"""One sequence from a verifier to whoever reads it: commits, whatever dies on the way.

Losing a verifier means opening the sequence on another one (or on the same, once it is back) with the prompt and the
tokens so far; the tokens that follow are the ones that would have followed. That holds for one revision of the model:
what was begun on one is never continued on another.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import grpc

from gateway.generation.drafting import Drafting
from gateway.generation.suspicion import Suspicion
from gateway.generation.transcript import Transcript
from gateway.model.attempts import LostError, NoneSuitsError
from gateway.model.replica import reason_of
from gateway.model.served_model import ServedModel
from gateway.model.vigil import VerifierAttempts, VerifierUse
from paceline.errors import FailedPreconditionError, PacelineError, UnavailableError, from_call
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import model_pb2
from services.model_server.client import REVISION_CHANGED
from services.verifier.client import VerifyStream

_RETRY_AFTER_SECONDS = 1.0


class Relay:
    """Runs one sequence to its end."""

    def __init__(
        self, model: ServedModel, transcript: Transcript, token: Callable[[], str], resume_seconds: float
    ) -> None:
        """`token` gives a fresh one of the tenant's."""
        self._model = model
        self._transcript = transcript
        self._token = token
        self._resume_seconds = resume_seconds

    async def commits(self) -> AsyncIterator[speculation_pb2.Commit]:
        """Yields commits until one has a finish reason. Ending the iterator ends the verifier's and draft's streams.

        Raises UnavailableError when no verifier could be had for too long, FailedPreconditionError when none has the
        revision any more that the sequence was begun on, AbortedError when verifiers seem to die of it,
        grpc.aio.AioRpcError for what a verifier refuses.
        """
        attempts = self._model.verifiers.attempts(
            self._resume_seconds, self._suits, self._transcript.affinity, self._model.retries
        )
        suspicion = Suspicion(self._model.trials, self._transcript)
        async with Drafting(self._model, self._transcript, self._token) as drafting:
            while True:
                stream: VerifyStream | None = None
                try:
                    await suspicion.begin()
                    async with attempts.another() as use, self._open(use, attempts) as stream:
                        if use.replica.wants_proposals and self._draft_is_apart(use):
                            drafting.want()
                        while (commit := await stream.next_commit()) is not None:
                            use.worked()
                            suspicion.passed()
                            self._transcript.add(commit)
                            if not commit.finish_reason:
                                use.replica.wants_proposals = commit.num_wanted > 0
                                await drafting.commit(commit)
                            yield commit
                            if commit.finish_reason:
                                return
                        raise LostError("the stream ended early")
                except LostError:
                    self._transcript.num_failovers += 1
                    await suspicion.lost(stream)
                except (NoneSuitsError, UnavailableError) as error:
                    raise self._without_verifier(error) from error
                except grpc.aio.AioRpcError as error:
                    if not await self._goes_elsewhere(error, use, attempts):
                        raise
                finally:
                    suspicion.end()

    @asynccontextmanager
    async def _open(self, use: VerifierUse, attempts: VerifierAttempts) -> AsyncIterator[VerifyStream]:
        """Opens the sequence at a verifier, and has proposals go there."""
        info = use.replica.info
        draft = self._model.draft_beside(use.client) if self._transcript.opening.max_draft_tokens else None
        message = self._transcript.open_message(info.revision_digest if info is not None else "", draft)
        route = self._transcript.affinity.route(self._transcript.num_failovers)
        async with use.client.verify(None, self._token(), route) as stream:
            with self._model.vigil.over(use, attempts, stream):
                with suppress(asyncio.InvalidStateError):  # The stream is over already; reading says why.
                    await stream.open(message)
                self._transcript.verifiers.add(use.client.target)
                with self._transcript.verified_by(stream):
                    yield stream

    def _draft_is_apart(self, use: VerifierUse) -> bool:
        """Whether a draft may begin at once. Else it would take the cores that compute the prompt: it begins behind it,
        when the first commit says that proposals are wanted.
        """
        draft = self._model.draft_beside(use.client)
        return draft is not None and draft.is_apart

    def _suits(self, info: model_pb2.ModelInfo) -> bool:
        """Whether a verifier has the revision that the sequence was begun on, or for a new one the newest."""
        if self._transcript.has_begun:
            return info.revision_digest == self._transcript.opening.revision_digest
        newest = self._model.newest
        return newest is not None and info.revision_digest == newest.revision_digest

    async def _goes_elsewhere(self, error: grpc.aio.AioRpcError, use: VerifierUse, attempts: VerifierAttempts) -> bool:
        """Whether what a verifier refuses may be had elsewhere: all else it answers is passed on at once."""
        reason = reason_of(error)
        if from_call(error).reason == REVISION_CHANGED:
            use.refused(reason)
            await use.replica.renew()
            return True
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not use.has_worked:
            use.refused(reason)
            # What has begun waits for room; who has not is told at once that there is none.
            return self._transcript.has_begun or attempts.has_another()
        return False

    def _without_verifier(self, error: Exception) -> PacelineError:
        """What a request is told when there is no verifier for it."""
        newest = self._model.newest
        if newest is not None and newest.revision_digest != self._transcript.opening.revision_digest:
            return FailedPreconditionError(
                f"model {self._model.id!r} was rolled to another revision than the request was begun on",
                REVISION_CHANGED,
            )
        return error if isinstance(error, PacelineError) else UnavailableError(str(error), _RETRY_AFTER_SECONDS)
