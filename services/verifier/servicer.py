"""VerifierService over gRPC: one stream is one sequence; its end, however it comes, frees everything."""

import asyncio
import math
from collections import abc
from contextlib import aclosing

from opentelemetry import trace

from paceline.internal.v1 import speculation_pb2, verifier_pb2, verifier_pb2_grpc
from paceline.v1 import sampling_pb2
from services.common.access import CallContext
from services.common.tracing import RoundEvents
from services.engine.engine_loop import EngineLoop
from services.engine.sampler import RowLogprobs
from services.model_server.client import TAKEN
from services.model_server.opening import Opener, first_open
from services.model_server.streams import EventStream
from services.verifier.accept import Finish
from services.verifier.metrics import VerifierMetrics
from services.verifier.proposals import MAX_AHEAD
from services.verifier.speculation_state import to_state
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed, TargetSequence

_MAX_DIGEST = 64
"""A draft's digest is known by so many of its digits, and nothing longer is kept."""
_PARTING_SECONDS = 5.0
"""How long a finished stream waits for the other end to close it. To gRPC's asyncio client a stream that the server
has ended is broken, unread commits and all, as soon as one more proposal is written to it."""

_REASONS = {
    Finish.EOS: sampling_pb2.FINISH_REASON_EOS,
    Finish.STOP: sampling_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
}
_MAX_PROPOSED = 2 * MAX_AHEAD
"""Tokens of a proposal that can be of use: it may begin and end so far from the committed end."""


class VerifierServicer(verifier_pb2_grpc.VerifierServiceServicer):
    """Serves one target model."""

    def __init__(self, engine_loop: EngineLoop[TargetRole], opener: Opener) -> None:
        self._engine_loop = engine_loop
        self._opener = opener
        self.metrics = VerifierMetrics(engine_loop, opener.open_streams)

    async def Verify(
        self, request_iterator: abc.AsyncIterator[verifier_pb2.VerifyRequest], context: CallContext
    ) -> abc.AsyncIterator[verifier_pb2.VerifyResponse]:
        """See verifier.proto."""
        opening = await first_open(request_iterator)
        async with self._opener.open(opening, context) as (sequence, end, digest):
            await context.send_initial_metadata(TAKEN)
            stream = EventStream[Committed]()
            target = TargetSequence(
                sequence,
                stream.emit,
                opening.max_draft_tokens,
                end,
                adapter=opening.adapter_digest,
                digest=digest,
                draft=opening.draft_revision_digest[:_MAX_DIGEST],
                draft_is_apart=opening.draft_is_apart,
            )
            async with aclosing(self._run(request_iterator, stream, target)) as commits:
                async for committed in commits:
                    yield verifier_pb2.VerifyResponse(commit=_to_commit(committed))

    async def GetSpeculation(
        self, request: verifier_pb2.GetSpeculationRequest, context: object
    ) -> verifier_pb2.GetSpeculationResponse:
        """See verifier.proto."""
        _ = self._engine_loop.facts
        return verifier_pb2.GetSpeculationResponse(
            state=await self._engine_loop.ask(lambda role: to_state(role.planner, role.acceptance))
        )

    async def _run(
        self,
        requests: abc.AsyncIterator[verifier_pb2.VerifyRequest],
        stream: EventStream[Committed],
        target: TargetSequence,
    ) -> abc.AsyncGenerator[Committed, None]:
        """One sequence from its opening to its end, whatever ends it."""
        self._engine_loop.submit(lambda role: role.open(target), stream.fail)
        if not target.sequence.is_background:
            self._engine_loop.hurry()
        reader = asyncio.create_task(self._read(requests, stream, target))
        span = trace.get_current_span()
        span.add_event("submitted")  # What came before was waiting for an adapter and for blocks of the prefix cache.
        rounds, wanted = RoundEvents(span), 0
        try:
            with stream.ends_with(self._engine_loop.stopped):
                async for committed in stream:
                    self.metrics.record(committed, wanted)
                    _add(rounds, committed)
                    wanted = committed.num_wanted
                    if committed.finish is not None:  # Who has it may cancel the call, which may end the span at once.
                        _end(rounds, target)
                    yield committed
                    if committed.finish is not None:
                        await asyncio.wait([reader], timeout=_PARTING_SECONDS)
                        return
        finally:
            _end(rounds, target)
            reader.cancel()
            self._engine_loop.submit(lambda role: role.close(target))

    async def _read(
        self,
        requests: abc.AsyncIterator[verifier_pb2.VerifyRequest],
        stream: EventStream[Committed],
        target: TargetSequence,
    ) -> None:
        """Hands proposals to the role as they come. Anything else is no proposal and is dropped."""
        async for request in requests:
            if request.HasField("proposal"):
                self._hand_over(request.proposal, stream, target)

    def _hand_over(
        self, proposal: speculation_pb2.Proposal, stream: EventStream[Committed], target: TargetSequence
    ) -> None:
        anchor, confidences = proposal.anchor, proposal.confidences
        token_ids = list(proposal.token_ids[:_MAX_PROPOSED])
        if len(proposal.token_ids) > _MAX_PROPOSED:
            confidences = confidences[:_MAX_PROPOSED] if len(confidences) == len(proposal.token_ids) else b""
        seconds = max(0.0, proposal.step_seconds) if math.isfinite(proposal.step_seconds) else 0.0
        self._engine_loop.submit(
            lambda role: role.propose(target, anchor.position, anchor.digest, token_ids, confidences, seconds),
            stream.fail,
        )


def _add(rounds: RoundEvents, committed: Committed) -> None:
    if rounds.is_recording:
        rounds.add(
            drafted_tokens=committed.num_drafted,
            accepted_tokens=committed.num_accepted,
            committed_tokens=len(committed.token_ids),
            waited_seconds=committed.waited_seconds,
        )


def _end(rounds: RoundEvents, target: TargetSequence) -> None:
    rounds.end(prompt_tokens=target.sequence.num_prompt_tokens, cached_tokens=target.sequence.num_cached)


def _to_commit(committed: Committed) -> speculation_pb2.Commit:
    reason = sampling_pb2.FINISH_REASON_UNSPECIFIED
    if committed.finish is not None:
        reason = _REASONS[committed.finish]
    return speculation_pb2.Commit(
        anchor=speculation_pb2.Anchor(position=committed.position, digest=committed.digest),
        token_ids=committed.token_ids,
        num_accepted=committed.num_accepted,
        num_drafted=committed.num_drafted,
        finish_reason=reason,
        logprobs=[_to_logprobs(entry) for entry in committed.logprobs if entry is not None],
        num_cached_tokens=committed.num_cached_tokens,
        num_wanted=committed.num_wanted,
        was_ready=committed.was_ready,
    )


def _to_logprobs(entry: RowLogprobs) -> sampling_pb2.TokenLogprobs:
    return sampling_pb2.TokenLogprobs(
        logprob=entry.logprob,
        top=[sampling_pb2.TokenLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top],
    )
