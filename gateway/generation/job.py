"""From a public request to what is run for it: all that is checked, resolved and tokenized beforehand."""

from collections.abc import Sequence
from typing import NamedTuple

from gateway.generation.choice import Choice
from gateway.generation.prefix import prefix_key
from gateway.generation.prompt import read_prompt
from gateway.generation.resumption import Received, check_adapter, read_received
from gateway.generation.stop_strings import StopStrings
from gateway.generation.transcript import Transcript
from gateway.generation.validation import Parameters, Request, check_request
from gateway.model.catalogue import Catalogue
from gateway.model.served_model import ServedModel
from gateway.tenants.adapters import Adapters, Resolved
from gateway.tenants.identity import Caller
from paceline.internal.v1 import speculation_pb2
from services.common.seeds import derive_seed


class Job(NamedTuple):
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
    received: Sequence[Received] | None
    """What the client has of each choice already, where another gateway began the request."""

    def transcripts(self, num_crashes: int) -> list[Transcript]:
        """How the sequence of each choice stands at first."""
        made = []
        for index in range(self.parameters.num_choices):
            transcript = Transcript(self._opening(index), self.adapter.draft, num_crashes, self.prefix)
            if self.received is not None:
                transcript.go_on_behind(self.received[index].token_ids)
            made.append(transcript)
        return made

    def choices(self) -> list[Choice]:
        """What becomes of the commits of each choice."""
        parameters, tokenizer = self.parameters, self.model.tokenizer
        return [
            Choice(
                index,
                tokenizer.detokenizer(self.prompt_ids, skip_special_tokens=parameters.skip_special_tokens),
                StopStrings(parameters.stops),
                parameters.sampling.min_tokens,
            )
            for index in range(parameters.num_choices)
        ]

    def _opening(self, index: int) -> speculation_pb2.Open:
        """How the sequence of a choice begins."""
        opening = speculation_pb2.Open(
            token_ids=self.prompt_ids,
            num_prompt_tokens=len(self.prompt_ids),
            sampling=self.parameters.sampling,
            bad_words=[speculation_pb2.TokenSequence(token_ids=word) for word in self.bad_words],
            max_draft_tokens=self.parameters.max_draft_tokens,
            priority=self.priority,
            tenant=self.tenant,
            adapter_digest=self.adapter.target,
            revision_digest=self.revision,
        )
        opening.sampling.seed = derive_seed(self.parameters.sampling.seed, index)
        return opening


class Preparation:
    """Makes requests ready to be run."""

    def __init__(self, catalogue: Catalogue, adapters: Adapters, max_prompt_bytes: int) -> None:
        self._catalogue = catalogue
        self._adapters = adapters
        self._max_prompt_bytes = max_prompt_bytes

    async def job(self, request: Request, caller: Caller) -> Job:
        """Checks a request. Raises errors of the tree for what is wrong with it or cannot be had."""
        model = self._catalogue.get(request.model)
        info = await model.info()
        parameters = check_request(request, info.vocab_size, model.draft_tokens, model.sampling_defaults(info))
        prompt_ids = await read_prompt(request, model.tokenizer, info, self._max_prompt_bytes)
        tenant = speculation_pb2.TenantAccess(
            namespace=caller.namespace, num_public_tokens=model.num_public_tokens(prompt_ids)
        )
        adapter = await self._adapters.resolve(caller, model, request.adapter)
        bad_words = await model.tokenizer.encode_words(parameters.bad_words)
        # A special token is left out of the text, so a stop string that is one is found among the tokens.
        special = map(model.tokenizer.special_id, parameters.stops)
        parameters.sampling.stop_token_ids.extend(token_id for token_id in special if token_id is not None)
        received: Sequence[Received] | None = None
        revision = info.revision_digest
        if request.HasField("resume"):
            received = read_received(request, parameters, info, len(prompt_ids))
            revision = request.resume.revision_digest
            check_adapter(request.resume, adapter.target)
        room = info.max_context_tokens - len(prompt_ids)
        sampling = parameters.sampling
        most = min(room, sampling.max_tokens) if sampling.HasField("max_tokens") else room
        return Job(
            *(model, revision, parameters, prompt_ids, bad_words, tenant, adapter),
            prefix=prefix_key(request, prompt_ids, tenant, adapter.target),
            priority=caller.plan.priority(parameters.priority),
            max_tokens=len(prompt_ids) + most * parameters.num_choices,
            received=received,
        )
