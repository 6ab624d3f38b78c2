"""All that happens to a request, whatever it came by: from the public request message to the public events."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import TypeAlias

from gateway.generation.accounting import Accounting
from gateway.generation.admission import Admission
from gateway.generation.gen_ai import operation_of
from gateway.generation.job import Job, Preparation
from gateway.generation.merge import merge
from gateway.generation.outcome import Record
from gateway.generation.relay import Relay
from gateway.generation.request_span import request_span
from gateway.generation.resumption import Received, resumed_id
from gateway.generation.validation import Request
from gateway.metrics import GatewayMetrics
from gateway.model.affinity import Affinity
from gateway.model.catalogue import Catalogue
from gateway.settings import GatewaySettings
from gateway.tenants.adapters import Adapters
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.errors import DeadlineExceededError
from paceline.v1 import inference_pb2
from services.common.background import BACKGROUND_PRIORITY

_log = logging.getLogger(__name__)
Event: TypeAlias = inference_pb2.Started | inference_pb2.Delta | inference_pb2.Finished | inference_pb2.Usage


class Generation:
    """Runs requests. Stateless: nothing outlives one but how it ended."""

    def __init__(
        self,
        settings: GatewaySettings,
        catalogue: Catalogue,
        admission: Admission,
        grants: Grants,
        adapters: Adapters,
        metrics: GatewayMetrics,
        accounts: Accounting,
        on_end: Callable[[Record], None] = lambda _: None,
    ) -> None:
        """`accounts` are those of requests for which nothing else is said; `on_end` is told of each that ended."""
        self._settings = settings
        self._preparation = Preparation(catalogue, adapters, settings.max_prompt_bytes)
        self._admission = admission
        self._grants = grants
        self._adapters = adapters
        self._metrics = metrics
        self._accounts = accounts
        self._on_end = on_end

    @asynccontextmanager
    async def run(
        self,
        request: Request,
        caller: Caller,
        deadline: float | None = None,
        accounts: Accounting | None = None,
        num_crashes: int = 0,
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of a request: Started, then deltas, one Finished a choice, and Usage last.

        Leaving the block ends the request: its streams first, then its place is given on, then it is recorded how it
        ended and what it used. `deadline` is in seconds from now; `num_crashes`
        verifiers ended with it when it was run before. Raises errors of the tree for what is wrong with the
        request, is over the caller's limits or cannot be had, DeadlineExceededError when it is over,
        grpc.aio.AioRpcError for what a verifier refuses.
        """
        accounts = accounts or self._accounts
        record = Record(resumed_id(request) or accounts.request_id(), caller, deadline, operation_of(request))
        with request_span(record), self._recorded(record, accounts):
            async with _limited(deadline), accounts.request(caller) as allowance:
                job = await self._preparation.job(request, caller)
                record.model, record.num_prompt_tokens = job.model.id, len(job.prompt_ids)
                record.adapter, record.seed = request.adapter, job.parameters.sampling.seed
                record.sampling = job.parameters.applied
                record.revision, record.adapter_digest = job.revision, job.adapter.target
                record.received = None if job.received is None else [choice.usage for choice in job.received]
                allowance.reserve(len(job.prompt_ids), job.max_tokens)
                try:
                    async with (
                        self._place(job, caller),
                        aclosing(self._events(job, record, num_crashes)) as events,  # type: ignore[type-var]
                    ):
                        yield events
                finally:
                    used = record.billed()
                    allowance.settle(used.num_prompt_tokens + used.num_completion_tokens)
        await accounts.settled()

    @contextmanager
    def _recorded(self, record: Record, accounts: Accounting) -> Iterator[None]:
        """Records how a request ended, here for all ways to end."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            record.ended(error)
            accounts.ended(record)
            self._metrics.record_end(record)
            self._on_end(record)
            usage = record.usage()
            _log.info(
                "request %s for model %r %s: %d prompt tokens, %d produced in %.3f s",
                *(record.request_id, record.model, record.outcome),
                *(usage.num_prompt_tokens, usage.num_completion_tokens, usage.total_seconds),
            )

    @asynccontextmanager
    async def _place(self, job: Job, caller: Caller) -> AsyncIterator[None]:
        """Waits for a place and holds it. Its adapter is loaded meanwhile, as long as the request waits.

        What runs in the background takes no place of others: whoever runs it bounds it.
        """
        if job.priority == BACKGROUND_PRIORITY:
            yield
            return
        waits = job.adapter.target and self._admission.will_wait
        prefetch = (
            self._adapters.prefetch(caller, job.model, Affinity(job.prefix, job.adapter.target)) if waits else None
        )
        async with AsyncExitStack() as place:
            try:
                await place.enter_async_context(self._admission.place(job.priority, job.parameters.num_choices))
            except BaseException:
                if prefetch is not None:
                    prefetch.cancel()
                raise
            yield

    async def _events(self, job: Job, record: Record, num_crashes: int) -> AsyncIterator[Event]:
        """What happens once there is a place."""
        record.admitted()
        yield record.started()
        record.transcripts = job.transcripts(num_crashes)
        record.choices = job.choices()
        token = partial(self._grants.sequence_token, job.tenant)
        received: Sequence[Received | None] = job.received or [None] * len(record.choices)
        sources = [
            choice.events(Relay(job.model, transcript, token, self._settings.resume_seconds), begun)
            for choice, transcript, begun in zip(record.choices, record.transcripts, received, strict=True)
        ]
        async with merge(sources) as events:
            async for event in events:
                if isinstance(event, inference_pb2.Delta):
                    self._metrics.record_tokens(record, len(event.token_ids))
                else:
                    record.finish_reasons[event.choice] = event.finish_reason
                yield event
        record.is_complete = True
        yield record.usage()


@asynccontextmanager
async def _limited(seconds: float | None) -> AsyncIterator[None]:
    """Ends the block with DeadlineExceededError when it takes longer."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceededError("the request took longer than its deadline allows") from error
