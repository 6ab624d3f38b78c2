"""The other end of VerifierService."""

import grpc

from paceline.internal.v1 import speculation_pb2, verifier_pb2, verifier_pb2_grpc
from paceline.v1 import model_pb2
from services.common.tracing import headers_of, start_call
from services.model_server.client import ModelServerClient, SequenceStream, opening_metadata

_VERIFY = "/paceline.internal.v1.VerifierService/Verify"


class VerifierClient(ModelServerClient):
    """One verifier."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        super().__init__(target, channel)
        self._verifier = verifier_pb2_grpc.VerifierServiceStub(channel)

    def verify(self, timeout: float | None, token: str = "", route: str = "") -> "VerifyStream":
        """A stream for one sequence; `timeout` in seconds, `token` is its tenant's; see `opening_metadata`."""
        span = start_call(_VERIFY, self.target)
        metadata = (*opening_metadata(token, route), *headers_of(span))
        return VerifyStream(self._verifier.Verify(timeout=timeout, metadata=metadata), span)

    async def get_speculation(self, timeout: float) -> model_pb2.SpeculationState:
        """Says whether speculation pays there. Raises grpc.aio.AioRpcError."""
        return (await self._verifier.GetSpeculation(verifier_pb2.GetSpeculationRequest(), timeout=timeout)).state


class VerifyStream(SequenceStream[verifier_pb2.VerifyRequest, verifier_pb2.VerifyResponse]):
    """One sequence at a verifier."""

    async def open(self, message: speculation_pb2.Open) -> None:
        """Opens the sequence."""
        await self.write(verifier_pb2.VerifyRequest(open=message))

    async def propose(self, proposal: speculation_pb2.Proposal) -> None:
        """Passes a proposal on."""
        await self.write(verifier_pb2.VerifyRequest(proposal=proposal))

    async def next_commit(self) -> speculation_pb2.Commit | None:
        """The next commit, or None at the end of the stream. Raises grpc.aio.AioRpcError."""
        response = await self.read()
        return None if response is None else response.commit
