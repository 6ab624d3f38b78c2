"""DraftService over gRPC: one stream is one sequence; its end, however it comes, frees everything."""

import asyncio
from collections import abc
from contextlib import aclosing

from opentelemetry import trace

from paceline.errors import InvalidArgumentError
from paceline.internal.v1 import draft_pb2, draft_pb2_grpc, speculation_pb2
from services.common.access import CallContext
from services.common.tracing import RoundEvents
from services.draft.draft_role import DraftRole
from services.draft.draft_sequence import DraftSequence
from services.draft.fitting import fit
from services.draft.metrics import DraftMetrics
from services.draft.path import Proposed
from services.engine.engine_loop import EngineLoop
from services.model_server.client import TAKEN
from services.model_server.opening import Opener, first_open
from services.model_server.streams import EventStream


class DraftServicer(draft_pb2_grpc.DraftServiceServicer):
    """Serves one draft model."""

    def __init__(
        self, engine_loop: EngineLoop[DraftRole], opener: Opener, max_proposal_tokens: int, *, ahead: bool
    ) -> None:
        self._engine_loop = engine_loop
        self._opener = opener
        self._max_proposal_tokens = max_proposal_tokens
        self._ahead = ahead
        self._metrics = DraftMetrics(engine_loop, opener.open_streams)

    async def Propose(
        self, request_iterator: abc.AsyncIterator[draft_pb2.ProposeRequest], context: CallContext
    ) -> abc.AsyncIterator[draft_pb2.ProposeResponse]:
        """See draft.proto."""
        opening = await first_open(request_iterator)
        if not opening.max_draft_tokens:
            raise InvalidArgumentError("open.max_draft_tokens", "must be at least 1 to be given proposals")
        fitted = fit(opening, self._engine_loop.facts)
        if fitted is None:
            async for _ in request_iterator:
                pass
            return
        async with self._opener.open(fitted, context) as (sequence, end, digest):
            await context.send_initial_metadata(TAKEN)
            stream = EventStream[Proposed]()
            length = min(opening.max_draft_tokens, self._max_proposal_tokens)
            draft = DraftSequence(sequence, stream.emit, length, end, self._ahead, root_digest=digest)
            if opening.HasField("num_wanted"):
                draft.wanted = min(opening.num_wanted, length)
            async with aclosing(self._run(request_iterator, stream, draft)) as proposals:
                async for proposal in proposals:
                    yield draft_pb2.ProposeResponse(proposal=proposal)

    async def _run(
        self, requests: abc.AsyncIterator[draft_pb2.ProposeRequest], stream: EventStream[Proposed], draft: DraftSequence
    ) -> abc.AsyncGenerator[speculation_pb2.Proposal, None]:
        """One sequence from its opening to its end, whatever ends it."""
        self._engine_loop.submit(lambda role: role.open(draft), stream.fail)
        reader = asyncio.create_task(self._read(requests, stream, draft))
        span = trace.get_current_span()
        span.add_event("submitted")
        rounds = RoundEvents(span, "proposals")
        try:
            with stream.ends_with(self._engine_loop.stopped):
                async for proposed in stream:
                    self._metrics.record(len(proposed.token_ids))
                    rounds.add(proposed_tokens=len(proposed.token_ids))
                    yield _to_proposal(proposed)
        finally:
            rounds.end(prompt_tokens=draft.opened.num_prompt_tokens)
            reader.cancel()
            self._engine_loop.submit(lambda role: role.close(draft))

    async def _read(
        self,
        requests: abc.AsyncIterator[draft_pb2.ProposeRequest],
        stream: EventStream[Proposed],
        draft: DraftSequence,
    ) -> None:
        """Hands commits to the role as they come; when no more can come, the stream ends."""
        try:
            async for request in requests:
                if request.HasField("commit"):
                    self._hand_over(request.commit, stream, draft)
        finally:
            stream.end()

    def _hand_over(self, commit: speculation_pb2.Commit, stream: EventStream[Proposed], draft: DraftSequence) -> None:
        if len(commit.token_ids) > draft.end:
            return  # No text is as long.
        position, token_ids, wanted = commit.anchor.position, list(commit.token_ids), commit.num_wanted
        self._engine_loop.submit(lambda role: role.commit(draft, position, token_ids, wanted), stream.fail)


def _to_proposal(proposed: Proposed) -> speculation_pb2.Proposal:
    return speculation_pb2.Proposal(
        anchor=speculation_pb2.Anchor(position=proposed.position, digest=proposed.digest),
        token_ids=proposed.token_ids,
        confidences=proposed.confidences,
        step_seconds=proposed.step_seconds,
    )
