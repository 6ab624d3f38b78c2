"""The other end of DraftService."""

import grpc

from paceline.v1 import draft_pb2, draft_pb2_grpc, model_pb2, speculation_pb2


class DraftClient:
    """One draft service. Streams opened here are counted, so that callers can choose the least busy."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.num_streams = 0
        self._model: model_pb2.ModelInfo | None = None
        self._channel = channel
        self._stub = draft_pb2_grpc.DraftServiceStub(channel)

    async def get_model(self, timeout: float) -> model_pb2.ModelInfo:
        """The model that this service runs; asked once until `forget`. Raises grpc.aio.AioRpcError."""
        if self._model is None:
            response = await self._stub.GetDraftModel(draft_pb2.GetDraftModelRequest(), timeout=timeout)
            self._model = response.model_info
        return self._model

    async def list_adapter_modules(self, timeout: float) -> list[model_pb2.AdapterModule]:
        """The layers that adapters may change. Raises grpc.aio.AioRpcError."""
        request = draft_pb2.ListDraftAdapterModulesRequest()
        return list((await self._stub.ListDraftAdapterModules(request, timeout=timeout)).modules)

    def forget(self) -> None:
        """Has the model asked for again: the service was lost and may come back with another."""
        self._model = None

    def propose(self, timeout: float | None) -> "ProposeStream":
        """A stream for one sequence; `timeout` in seconds."""
        return ProposeStream(self, self._stub.Propose(timeout=timeout))

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()


class ProposeStream:
    """One sequence at a draft service. Use as an async context manager: leaving it cancels what is still running."""

    def __init__(self, client: DraftClient, call: "grpc.aio.StreamStreamCall") -> None:  # type: ignore[type-arg]
        self._client = client
        self._call = call

    async def __aenter__(self) -> "ProposeStream":
        self._client.num_streams += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.num_streams -= 1
        self._call.cancel()

    async def open(self, message: speculation_pb2.Open) -> None:
        """Opens the sequence."""
        await self._call.write(draft_pb2.ProposeRequest(open=message))

    async def commit(self, commit: speculation_pb2.Commit) -> None:
        """Tells what the target decided."""
        await self._call.write(draft_pb2.ProposeRequest(commit=commit))

    async def next_proposal(self) -> speculation_pb2.Proposal | None:
        """The next proposal, or None at the end of the stream. Raises grpc.aio.AioRpcError."""
        response = await self._call.read()
        return None if response is grpc.aio.EOF else response.proposal  # type: ignore[attr-defined]
