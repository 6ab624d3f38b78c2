"""The other end of DraftService."""

import grpc

from paceline.internal.v1 import draft_pb2, draft_pb2_grpc, speculation_pb2
from services.common.tracing import headers_of, start_call
from services.model_server.client import ModelServerClient, SequenceStream, opening_metadata

_PROPOSE = "/paceline.internal.v1.DraftService/Propose"


class DraftClient(ModelServerClient):
    """One draft service."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        super().__init__(target, channel)
        self._draft = draft_pb2_grpc.DraftServiceStub(channel)

    def propose(self, timeout: float | None, token: str = "", route: str = "") -> "ProposeStream":
        """A stream for one sequence; `timeout` in seconds, `token` is its tenant's; see `opening_metadata`."""
        span = start_call(_PROPOSE, self.target)
        metadata = (*opening_metadata(token, route), *headers_of(span))
        return ProposeStream(self._draft.Propose(timeout=timeout, metadata=metadata), span)


class ProposeStream(SequenceStream[draft_pb2.ProposeRequest, draft_pb2.ProposeResponse]):
    """One sequence at a draft service."""

    async def open(self, message: speculation_pb2.Open) -> None:
        """Opens the sequence."""
        await self.write(draft_pb2.ProposeRequest(open=message))

    async def commit(self, commit: speculation_pb2.Commit) -> None:
        """Tells what the target decided."""
        await self.write(draft_pb2.ProposeRequest(commit=commit))

    async def next_proposal(self) -> speculation_pb2.Proposal | None:
        """The next proposal, or None at the end of the stream. Raises grpc.aio.AioRpcError."""
        response = await self.read()
        return None if response is None else response.proposal
