"""The other end of VerifierService."""

import asyncio

import grpc

from paceline.v1 import model_pb2, sampling_pb2, speculation_pb2, verifier_pb2, verifier_pb2_grpc


class VerifierClient:
    """One verifier. Streams opened here are counted, so that callers can choose the least busy."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.num_streams = 0
        self.wants_proposals = True
        """Whether its latest commit, of any sequence, wanted more; a full batch wants none."""
        self._channel = channel
        self._stub = verifier_pb2_grpc.VerifierServiceStub(channel)

    async def get_model(self, timeout: float) -> model_pb2.ModelInfo:
        """The model that this verifier runs. Raises grpc.aio.AioRpcError."""
        response = await self._stub.GetTargetModel(verifier_pb2.GetTargetModelRequest(), timeout=timeout)
        return response.model_info

    async def list_adapter_modules(self, timeout: float) -> list[model_pb2.AdapterModule]:
        """The layers that adapters may change. Raises grpc.aio.AioRpcError."""
        request = verifier_pb2.ListTargetAdapterModulesRequest()
        return list((await self._stub.ListTargetAdapterModules(request, timeout=timeout)).modules)

    async def prefetch_adapter(self, digest: str, tenant: speculation_pb2.TenantAccess, timeout: float) -> None:
        """Has an adapter loaded that will be needed soon. Raises grpc.aio.AioRpcError."""
        request = verifier_pb2.PrefetchAdapterRequest(adapter_digest=digest, tenant=tenant)
        await self._stub.PrefetchAdapter(request, timeout=timeout)

    def verify(self, timeout: float | None) -> "VerifyStream":
        """A stream for one sequence; `timeout` in seconds."""
        return VerifyStream(self, self._stub.Verify(timeout=timeout))

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()


class VerifyStream:
    """One sequence at a verifier. Use as an async context manager: leaving it cancels what is still running."""

    def __init__(self, client: VerifierClient, call: "grpc.aio.StreamStreamCall") -> None:  # type: ignore[type-arg]
        self._client = client
        self._call = call
        self._speculates = False
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> "VerifyStream":
        self._client.num_streams += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.num_streams -= 1
        self._call.cancel()

    async def open(self, message: speculation_pb2.Open) -> None:
        """Opens the sequence."""
        self._speculates = message.max_draft_tokens > 0
        await self._write(verifier_pb2.VerifyRequest(open=message))

    async def propose(self, proposal: speculation_pb2.Proposal) -> None:
        """Passes a proposal on. A caller that is cancelled meanwhile does not take the stream with it."""
        await asyncio.shield(self._write(verifier_pb2.VerifyRequest(proposal=proposal)))

    async def next_commit(self) -> speculation_pb2.Commit | None:
        """The next commit, or None at the end of the stream. Raises grpc.aio.AioRpcError."""
        response = await self._call.read()
        if not isinstance(response, verifier_pb2.VerifyResponse):
            return None
        commit = response.commit
        if self._speculates and commit.finish_reason == sampling_pb2.FINISH_REASON_UNSPECIFIED:
            self._client.wants_proposals = commit.num_wanted > 0
        return commit

    async def _write(self, request: verifier_pb2.VerifyRequest) -> None:
        """gRPC takes one write at a time, and ends the call when a task that is writing is cancelled."""
        async with self._writing:
            await self._call.write(request)
