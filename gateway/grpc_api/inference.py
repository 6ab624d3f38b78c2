"""InferenceService: what clients call."""

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc

from gateway.generation.admission import Admission
from gateway.generation.choice import Choice
from gateway.generation.merge import merge
from gateway.generation.relay import Relay
from gateway.generation.stop_strings import StopStrings
from gateway.generation.validation import Checked, check_prompt_bytes, check_prompt_tokens, check_request
from gateway.metrics import GatewayMetrics, RequestClock
from gateway.model.replicas import ServicePool
from gateway.model.tokenizer import ModelTokenizer
from gateway.settings import GatewaySettings
from gateway.tenants.adapters import Adapters, Resolved
from gateway.tenants.grants import Grants
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import inference_pb2, inference_pb2_grpc
from services.common.errors import InvalidArgumentError
from services.common.seeds import derive_seed

_Event = inference_pb2.Started | inference_pb2.Delta | inference_pb2.Finished | inference_pb2.Usage
_TimeRemaining = Callable[[], float | None]


class _Job(NamedTuple):
    """A checked request with its prompt."""

    checked: Checked
    model: str
    prompt_ids: Sequence[int]
    tenant: speculation_pb2.TenantAccess
    adapter: Resolved


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves one model. Stateless: nothing outlives a call."""

    def __init__(
        self,
        settings: GatewaySettings,
        pool: ServicePool,
        tokenizer: ModelTokenizer,
        admission: Admission,
        grants: Grants,
        adapters: Adapters,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._tokenizer = tokenizer
        self._admission = admission
        self._grants = grants
        self._adapters = adapters
        self._metrics = GatewayMetrics(admission)

    async def Generate(
        self,
        request: inference_pb2.GenerateRequest,
        context: "grpc.aio.ServicerContext",  # type: ignore[type-arg]
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """See inference.proto."""
        info = self._pool.check_model(request.model)
        checked = check_request(request, info.vocab_size, self._settings.draft_tokens)
        match request.WhichOneof("input"):
            case "prompt":
                check_prompt_bytes(len(request.prompt.encode()), self._settings.max_prompt_bytes, "prompt")
                prompt_ids: Sequence[int] = await self._tokenizer.encode(request.prompt)
                field = "prompt"
                if not request.prompt:
                    prompt_ids = []
            case "token_ids":
                prompt_ids, field = request.token_ids.ids, "token_ids.ids"
            case _:
                raise InvalidArgumentError("prompt", "a prompt or token_ids must be given")
        check_prompt_tokens(
            len(prompt_ids), max(prompt_ids, default=0), info.vocab_size, info.max_context_tokens, field
        )
        job = await self._job(request.adapter, checked, info.id, prompt_ids, context)
        async for event in self._run(job, context.time_remaining):
            yield _generate_response(event)

    async def Chat(
        self,
        request: inference_pb2.ChatRequest,
        context: "grpc.aio.ServicerContext",  # type: ignore[type-arg]
    ) -> AsyncIterator[inference_pb2.ChatResponse]:
        """See inference.proto."""
        info = self._pool.check_model(request.model)
        checked = check_request(request, info.vocab_size, self._settings.draft_tokens)
        if not request.messages:
            raise InvalidArgumentError("messages", "must not be empty")
        num_bytes = sum(len(message.content.encode()) for message in request.messages)
        check_prompt_bytes(num_bytes, self._settings.max_prompt_bytes, "messages")
        prompt_ids = await self._tokenizer.encode_chat(
            [{"role": message.role, "content": message.content} for message in request.messages]
        )
        check_prompt_tokens(
            len(prompt_ids), max(prompt_ids, default=0), info.vocab_size, info.max_context_tokens, "messages"
        )
        job = await self._job(request.adapter, checked, info.id, prompt_ids, context)
        async for event in self._run(job, context.time_remaining):
            yield _chat_response(event)

    async def Tokenize(self, request: inference_pb2.TokenizeRequest, context: object) -> inference_pb2.TokenizeResponse:
        """See inference.proto."""
        self._pool.check_model(request.model)
        check_prompt_bytes(len(request.text.encode()), self._settings.max_prompt_bytes, "text")
        return inference_pb2.TokenizeResponse(token_ids=await self._tokenizer.encode(request.text))

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: object
    ) -> inference_pb2.DetokenizeResponse:
        """See inference.proto."""
        info = self._pool.check_model(request.model)
        if max(request.token_ids, default=0) >= info.vocab_size:
            raise InvalidArgumentError(
                "token_ids", f"token id {max(request.token_ids)} is out of range: the vocabulary has {info.vocab_size}"
            )
        return inference_pb2.DetokenizeResponse(text=self._tokenizer.decode(list(request.token_ids)))

    async def _job(self, adapter: str, checked: Checked, model: str, prompt_ids: Sequence[int], context: Any) -> _Job:
        tenant = self._grants.grant(context, prompt_ids)
        return _Job(checked, model, prompt_ids, tenant, await self._adapters.resolve(tenant.namespace, adapter))

    async def _run(self, job: _Job, time_remaining: _TimeRemaining) -> AsyncIterator[_Event]:
        """Everything that happens to an admitted request, in order."""
        if job.adapter.target and self._admission.is_full:
            self._adapters.prefetch(job.adapter.target, job.tenant)
        async with self._admission.place(job.checked.priority):
            clock = self._metrics.clock()
            choices = [self._choice(job, index, time_remaining) for index in range(job.checked.num_choices)]
            started = False
            async with merge([choice.events() for choice in choices]) as events:
                async for event in events:
                    if not started:
                        started = True
                        yield self._started(job, choices)
                    if isinstance(event, inference_pb2.Delta):
                        clock.tokens(len(event.token_ids))
                    yield event
            usage = _total(job, choices, clock)
            self._metrics.record_usage(usage)
            if job.adapter.target:
                self._adapters.record(job.tenant.namespace, job.adapter.target, usage)
            yield usage

    def _choice(self, job: _Job, index: int, time_remaining: _TimeRemaining) -> Choice:
        checked = job.checked
        opening = speculation_pb2.Open(
            model=job.model,
            token_ids=job.prompt_ids,
            num_prompt_tokens=len(job.prompt_ids),
            sampling=checked.sampling,
            max_draft_tokens=checked.max_draft_tokens,
            priority=checked.priority,
            tenant=job.tenant,
            adapter_digest=job.adapter.target,
        )
        opening.sampling.seed = derive_seed(checked.sampling.seed, index)
        stops = opening.sampling.stop[:]
        del opening.sampling.stop[:]
        relay = Relay(
            self._pool,
            opening,
            job.adapter.draft,
            partial(self._grants.token, job.tenant.namespace),
            self._settings.resume_seconds,
            time_remaining,
        )
        return Choice(index, relay, self._tokenizer.detokenizer(), StopStrings(stops), watch=bool(stops))

    @staticmethod
    def _started(job: _Job, choices: Sequence[Choice]) -> inference_pb2.Started:
        return inference_pb2.Started(
            request_id=uuid.uuid4().hex,
            model=job.model,
            seed=job.checked.sampling.seed,
            num_prompt_tokens=len(job.prompt_ids),
            num_cached_tokens=max(choice.usage.num_cached_tokens for choice in choices),
        )


def _total(job: _Job, choices: Sequence[Choice], clock: RequestClock) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        num_prompt_tokens=len(job.prompt_ids),
        num_cached_tokens=max(choice.usage.num_cached_tokens for choice in choices),
        num_completion_tokens=sum(choice.usage.num_completion_tokens for choice in choices),
        num_drafted_tokens=sum(choice.usage.num_drafted_tokens for choice in choices),
        num_accepted_tokens=sum(choice.usage.num_accepted_tokens for choice in choices),
        num_rounds=sum(choice.usage.num_rounds for choice in choices),
        num_ready_rounds=sum(choice.usage.num_ready_rounds for choice in choices),
        time_to_first_token_seconds=clock.time_to_first_token,
        total_seconds=clock.elapsed,
    )


def _generate_response(event: _Event) -> inference_pb2.GenerateResponse:
    match event:
        case inference_pb2.Started():
            return inference_pb2.GenerateResponse(started=event)
        case inference_pb2.Delta():
            return inference_pb2.GenerateResponse(delta=event)
        case inference_pb2.Finished():
            return inference_pb2.GenerateResponse(finished=event)
        case _:
            return inference_pb2.GenerateResponse(usage=event)


def _chat_response(event: _Event) -> inference_pb2.ChatResponse:
    generated = _generate_response(event)
    kind = generated.WhichOneof("event")
    return inference_pb2.ChatResponse(**{kind: event})  # type: ignore[arg-type]
