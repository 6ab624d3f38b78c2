"""All that happens to a request, whatever it came by: from the public request message to the public events."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import NamedTuple, TypeAlias

from gateway.generation.accounting import Accounting
from gateway.generation.admission import Admission
from gateway.generation.choice import Choice
from gateway.generation.gen_ai import operation_of
from gateway.generation.merge import merge
from gateway.generation.outcome import Record
from gateway.generation.prefix import prefix_key
from gateway.generation.prompt import read_prompt
from gateway.generation.relay import Relay
from gateway.generation.request_span import request_span
from gateway.generation.stop_strings import StopStrings
from gateway.generation.transcript import Transcript
from gateway.generation.validation import Parameters, Request, check_request
from gateway.metrics import GatewayMetrics
from gateway.model.affinity import Affinity
from gateway.model.catalogue import Catalogue
from gateway.model.served_model import ServedModel
from gateway.settings import GatewaySettings
from gateway.tenants.adapters import Adapters, Resolved
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.errors import DeadlineExceededError
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import inference_pb2
from services.common.background import BACKGROUND_PRIORITY
from services.common.seeds import derive_seed

_log = logging.getLogger(__name__)
Event: TypeAlias = inference_pb2.Started | inference_pb2.Delta | inference_pb2.Finished | inference_pb2.Usage


class _Job(NamedTuple):
    """A checked request with all that is needed to run it."""

    model: ServedModel
    revision: str
    parameters: Parameters
    prompt_ids: Sequence[int]
    bad_words: Sequence[Sequence[int]]
    tenant: speculation_pb2.TenantAccess
    adapter: Resolved
    prefix: str
    """What the beginning of its prompt is known by."""
    priority: int
    """As the caller's plan allows."""
    max_tokens: int
    """Most tokens of prompt and all choices together."""


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
        self._catalogue = catalogue
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
        record = Record(accounts.request_id(), caller, deadline, operation_of(request))
        with request_span(record), self._recorded(record, accounts):
            async with _limited(deadline), accounts.request(caller) as allowance:
                job = await self._prepare(request, caller)
                record.model, record.num_prompt_tokens = job.model.id, len(job.prompt_ids)
                record.adapter, record.seed = request.adapter, job.parameters.sampling.seed
                record.sampling = job.parameters.applied
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
    async def _place(self, job: _Job, caller: Caller) -> AsyncIterator[None]:
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

    async def _prepare(self, request: Request, caller: Caller) -> _Job:
        model = self._catalogue.get(request.model)
        info = await model.info()
        parameters = check_request(request, info.vocab_size, model.draft_tokens, model.sampling_defaults(info))
        prompt_ids = await read_prompt(request, model.tokenizer, info, self._settings.max_prompt_bytes)
        tenant = speculation_pb2.TenantAccess(
            namespace=caller.namespace, num_public_tokens=model.num_public_tokens(prompt_ids)
        )
        adapter = await self._adapters.resolve(caller, model, request.adapter)
        bad_words = await model.tokenizer.encode_words(parameters.bad_words)
        # A special token is left out of the text, so a stop string that is one is found among the tokens.
        special = map(model.tokenizer.special_id, parameters.stops)
        parameters.sampling.stop_token_ids.extend(token_id for token_id in special if token_id is not None)
        room = info.max_context_tokens - len(prompt_ids)
        sampling = parameters.sampling
        most = min(room, sampling.max_tokens) if sampling.HasField("max_tokens") else room
        return _Job(
            *(model, info.revision_digest, parameters, prompt_ids, bad_words, tenant, adapter),
            prefix=prefix_key(request, prompt_ids, tenant, adapter.target),
            priority=caller.plan.priority(parameters.priority),
            max_tokens=len(prompt_ids) + most * parameters.num_choices,
        )

    async def _events(self, job: _Job, record: Record, num_crashes: int) -> AsyncIterator[Event]:
        """What happens once there is a place."""
        record.admitted()
        yield record.started()
        openings = [_opening(job, index) for index in range(job.parameters.num_choices)]
        record.transcripts = [Transcript(opening, job.adapter.draft, num_crashes, job.prefix) for opening in openings]
        record.choices = [_choice(job, index) for index in range(len(openings))]
        token = partial(self._grants.sequence_token, job.tenant)
        sources = [
            choice.events(Relay(job.model, transcript, token, self._settings.resume_seconds))
            for choice, transcript in zip(record.choices, record.transcripts, strict=True)
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


def _choice(job: _Job, index: int) -> Choice:
    """What becomes of the commits of a choice."""
    parameters = job.parameters
    detokenizer = job.model.tokenizer.detokenizer(job.prompt_ids, skip_special_tokens=parameters.skip_special_tokens)
    return Choice(index, detokenizer, StopStrings(parameters.stops), parameters.sampling.min_tokens)


def _opening(job: _Job, index: int) -> speculation_pb2.Open:
    """How the sequence of a choice begins."""
    opening = speculation_pb2.Open(
        token_ids=job.prompt_ids,
        num_prompt_tokens=len(job.prompt_ids),
        sampling=job.parameters.sampling,
        bad_words=[speculation_pb2.TokenSequence(token_ids=word) for word in job.bad_words],
        max_draft_tokens=job.parameters.max_draft_tokens,
        priority=job.priority,
        tenant=job.tenant,
        adapter_digest=job.adapter.target,
        revision_digest=job.revision,
    )
    opening.sampling.seed = derive_seed(job.parameters.sampling.seed, index)
    return opening


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
