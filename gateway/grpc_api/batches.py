"""BatchService: many requests that need not be answered now."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Row

from gateway.batch.batches import Batches
from gateway.batch.results import Results
from gateway.batch.retries import Retries
from gateway.batch.states import ENDED, BatchState
from gateway.batch.upload import Uploads
from gateway.batch.worker import Worker
from gateway.clock import time_of_day
from gateway.grpc_api.timestamps import timestamp
from gateway.tenants.api_key import Scope
from gateway.tenants.identity import Caller, Identity
from paceline.errors import DeadlineExceededError, InvalidArgumentError
from paceline.v1 import batch_pb2, batch_pb2_grpc
from services.common.access import CallContext

_FIRST_SECONDS = 30.0
_STATES = {state.message: state for state in BatchState}


class BatchServicer(batch_pb2_grpc.BatchServiceServicer):
    """Between gRPC and the callers' batches."""

    def __init__(
        self,
        batches: Batches,
        uploads: Uploads,
        retries: Retries,
        results: Results,
        worker: Worker,
        identity: Identity,
    ) -> None:
        self._batches = batches
        self._uploads = uploads
        self._retries = retries
        self._results = results
        self._worker = worker
        self._identity = identity

    async def CreateBatch(
        self, request_iterator: AsyncIterator[batch_pb2.CreateBatchRequest], context: CallContext
    ) -> batch_pb2.CreateBatchResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                first = await anext(aiter(request_iterator), None)
        except TimeoutError as error:
            raise DeadlineExceededError(f"nothing was sent within {_FIRST_SECONDS:g} s") from error
        if first is None or not first.HasField("options"):
            raise InvalidArgumentError("options", "the first message must have options")
        accepted = await self._uploads.take(caller, first.options, _data(first.data, request_iterator))
        self._worker.wake()
        if accepted.row is None:
            counts = batch_pb2.BatchCounts(total=accepted.estimate.num_items)
            return batch_pb2.CreateBatchResponse(batch=batch_pb2.Batch(counts=counts), estimate=accepted.estimate)
        return batch_pb2.CreateBatchResponse(batch=_message(accepted.row), estimate=accepted.estimate)

    async def GetBatch(self, request: batch_pb2.GetBatchRequest, context: CallContext) -> batch_pb2.GetBatchResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        return batch_pb2.GetBatchResponse(batch=_message(await self._batches.get(caller.tenant, request.id)))

    async def ListBatches(
        self, request: batch_pb2.ListBatchesRequest, context: CallContext
    ) -> batch_pb2.ListBatchesResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        asked = dict.fromkeys(request.states)  # A request may name each a million times.
        for state in asked:
            if state not in _STATES:
                raise InvalidArgumentError("states", f"unknown state {state}")
        states = [_STATES[state] for state in asked]
        page = await self._batches.page(caller.tenant, request.page_size, request.page_token, states)
        return batch_pb2.ListBatchesResponse(batches=map(_message, page.rows), next_page_token=page.next_token)

    async def CancelBatch(
        self, request: batch_pb2.CancelBatchRequest, context: CallContext
    ) -> batch_pb2.CancelBatchResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        return batch_pb2.CancelBatchResponse(batch=_message(await self._batches.cancel(caller.tenant, request.id)))

    async def PauseBatch(
        self, request: batch_pb2.PauseBatchRequest, context: CallContext
    ) -> batch_pb2.PauseBatchResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        return batch_pb2.PauseBatchResponse(batch=_message(await self._batches.pause(caller.tenant, request.id)))

    async def ResumeBatch(
        self, request: batch_pb2.ResumeBatchRequest, context: CallContext
    ) -> batch_pb2.ResumeBatchResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        row = await self._batches.resume(caller.tenant, request.id)
        self._worker.wake()
        return batch_pb2.ResumeBatchResponse(batch=_message(row))

    async def RetryBatch(
        self, request: batch_pb2.RetryBatchRequest, context: CallContext
    ) -> batch_pb2.RetryBatchResponse:
        """See batch.proto."""
        row = await self._retries.retry(await self._caller(context), request)
        self._worker.wake()
        return batch_pb2.RetryBatchResponse(batch=_message(row))

    async def DeleteBatch(
        self, request: batch_pb2.DeleteBatchRequest, context: CallContext
    ) -> batch_pb2.DeleteBatchResponse:
        """See batch.proto."""
        caller = await self._caller(context)
        await self._batches.delete(caller.tenant, request.id)
        return batch_pb2.DeleteBatchResponse()

    async def ListBatchResults(
        self, request: batch_pb2.ListBatchResultsRequest, context: CallContext
    ) -> AsyncIterator[batch_pb2.ListBatchResultsResponse]:
        """See batch.proto."""
        caller = await self._caller(context)
        await self._batches.get(caller.tenant, request.id)
        async for line in self._results.lines(request.id, request):
            yield line

    async def _caller(self, context: CallContext) -> Caller:
        return await self._identity.caller(context, Scope.BATCH)


async def _data(first: bytes, rest: AsyncIterator[batch_pb2.CreateBatchRequest]) -> AsyncIterator[bytes]:
    yield first
    async for request in rest:
        if request.HasField("options"):
            raise InvalidArgumentError("options", "only the first message has options")
        yield request.data


def _message(row: Row[Any]) -> batch_pb2.Batch:
    return batch_pb2.Batch(
        id=row.id,
        state=BatchState(row.state).message,
        counts=batch_pb2.BatchCounts(
            total=row.num_items,
            completed=row.num_completed,
            failed=row.num_failed,
            cancelled=row.num_cancelled,
            expired=row.num_expired,
        ),
        metadata=json.loads(row.options),
        create_time=timestamp(row.created_at),
        accept_time=timestamp(row.accepted_at),
        start_time=timestamp(row.started_at),
        cancel_time=timestamp(row.cancelled_at),
        end_time=timestamp(row.ended_at),
        expire_time=timestamp(row.expires_at),
        estimated_end_time=timestamp(_estimated_end(row)),
        usage=batch_pb2.BatchUsage(
            num_prompt_tokens=row.num_prompt_tokens,
            num_cached_tokens=row.num_cached_tokens,
            num_completion_tokens=row.num_completion_tokens,
            cost_nanos=row.cost,
        ),
        idempotency_key=row.idempotency_key or "",
        max_cost_nanos=row.max_cost,
        retry_of=row.retry_of or "",
    )


def _estimated_end(row: Row[Any]) -> float | None:
    """When the rest is done at the pace so far."""
    if row.started_at is None or not row.num_ended or row.state in ENDED or row.state == BatchState.PAUSED:
        return None
    now = max(time_of_day(), row.started_at)
    return float(now + (now - row.started_at) / row.num_ended * (row.num_items - row.num_ended))
