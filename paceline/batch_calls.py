"""The calls of a client that are about batches."""

from collections.abc import AsyncGenerator, Mapping, Sequence

import grpc

from paceline.batches import Lines, requests
from paceline.calls import Metadata, answer, events
from paceline.sent import response_to_stream
from paceline.v1 import batch_pb2, batch_pb2_grpc


class BatchCalls:
    """See batch.proto."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._batches = batch_pb2_grpc.BatchServiceStub(channel)
        self._of_batches = tuple(metadata)

    async def create_batch(
        self,
        lines: Lines,
        *,
        metadata: Mapping[str, str] | None = None,
        completion_seconds: float | None = None,
        idempotency_key: str = "",
        max_cost_nanos: int | None = None,
        dry_run: bool = False,
    ) -> batch_pb2.CreateBatchResponse:
        """Submits a batch: JSON Lines (bytes, text, pieces) or the path of a file of them; see batch.proto."""
        options = {
            "metadata": metadata or {},
            "completion_seconds": completion_seconds,
            "idempotency_key": idempotency_key,
            "max_cost_nanos": max_cost_nanos,
            "dry_run": dry_run,
        }
        call = self._batches.CreateBatch(requests(options, lines), metadata=self._of_batches)
        return await answer(response_to_stream(call))

    async def get_batch(self, batch_id: str) -> batch_pb2.Batch:
        """Returns a batch as it is now."""
        request = batch_pb2.GetBatchRequest(id=batch_id)
        return (await answer(self._batches.GetBatch(request, metadata=self._of_batches))).batch

    async def list_batches(
        self, page_size: int = 0, page_token: str = "", states: Sequence[str] = ()
    ) -> batch_pb2.ListBatchesResponse:
        """Lists batches, newest first, a page at a time. `states` are such as "running"."""
        wanted = [batch_pb2.BatchState.Value(f"BATCH_STATE_{state.upper()}") for state in states]
        request = batch_pb2.ListBatchesRequest(page_size=page_size, page_token=page_token, states=wanted)
        return await answer(self._batches.ListBatches(request, metadata=self._of_batches))

    async def cancel_batch(self, batch_id: str) -> batch_pb2.Batch:
        """Has a batch end."""
        request = batch_pb2.CancelBatchRequest(id=batch_id)
        return (await answer(self._batches.CancelBatch(request, metadata=self._of_batches))).batch

    async def pause_batch(self, batch_id: str) -> batch_pb2.Batch:
        """Has no more items of a batch begin."""
        request = batch_pb2.PauseBatchRequest(id=batch_id)
        return (await answer(self._batches.PauseBatch(request, metadata=self._of_batches))).batch

    async def resume_batch(self, batch_id: str) -> batch_pb2.Batch:
        """Has a paused batch go on."""
        request = batch_pb2.ResumeBatchRequest(id=batch_id)
        return (await answer(self._batches.ResumeBatch(request, metadata=self._of_batches))).batch

    async def retry_batch(
        self,
        batch_id: str,
        *,
        completion_seconds: float | None = None,
        idempotency_key: str = "",
        max_cost_nanos: int | None = None,
    ) -> batch_pb2.Batch:
        """Runs what a batch has no results for again, in a new batch."""
        request = batch_pb2.RetryBatchRequest(
            id=batch_id,
            completion_seconds=completion_seconds,
            idempotency_key=idempotency_key,
            max_cost_nanos=max_cost_nanos,
        )
        return (await answer(self._batches.RetryBatch(request, metadata=self._of_batches))).batch

    async def delete_batch(self, batch_id: str) -> None:
        """Deletes a batch that has ended, with its results."""
        request = batch_pb2.DeleteBatchRequest(id=batch_id)
        await answer(self._batches.DeleteBatch(request, metadata=self._of_batches))

    def batch_results(
        self, batch_id: str, *, kind: str = "", finished_order: bool = False, cursor: str = ""
    ) -> AsyncGenerator[batch_pb2.ListBatchResultsResponse, None]:
        """Streams lines that are there; `kind` is "results", "errors" or both."""
        asked = batch_pb2.ListBatchResultsRequest
        request = asked(
            id=batch_id,
            kind=asked.Kind.Value(f"KIND_{kind.upper()}") if kind else asked.KIND_UNSPECIFIED,
            order=asked.ORDER_FINISHED if finished_order else asked.ORDER_INPUT,
            cursor=cursor,
        )
        return events(lambda: self._batches.ListBatchResults(request, metadata=self._of_batches))
