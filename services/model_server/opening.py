"""From an opening message to a sequence: checks all that a caller may get wrong, and has what it needs brought here."""

import asyncio
import os
from collections import abc
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from paceline.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, NotFoundError
from paceline.internal.v1 import speculation_pb2
from services.common.access import MAX_NAMESPACE_BYTES, Access, CallContext, bearer_token
from services.common.digest import EMPTY_DIGEST, extend_digest, identity_digest
from services.common.lora.config import check_digest
from services.common.sampling_params import MAX_LOGIT_BIASES, InvalidSamplingError, SamplingParams
from services.common.tokens import PUBLIC_NAMESPACE
from services.engine.engine import EngineFacts
from services.engine.engine_loop import EngineLoop
from services.engine.model import ModelDescription
from services.engine.roots import Roots
from services.engine.sequence import NO_SLOT, Sequence
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.client import REVISION_CHANGED
from services.model_server.prefix_tier import PrefixTier
from services.model_server.settings import ModelServerSettings
from services.model_server.streams import OpenStreams
from services.model_server.tenant import Tenant

MAX_DRAFT_TOKENS = 64
"""No round verifies more proposed tokens than this, whatever a stream asks for."""

_LISTS = ("stop", "logit_bias", "stop_token_ids", "bad_words", "skip_special_tokens")
"""Fields of sampling parameters that are read one by one, or are about text."""


_PIECE = 1024
"""Tokens that are gone through before others get their turn: well under a millisecond."""


class Opened(NamedTuple):
    """A sequence that is ready to run, and the length at which it ends."""

    sequence: Sequence
    end: int
    digest: int = EMPTY_DIGEST
    """Digest of its tokens."""


class Opener:
    """Opens sequences of one engine."""

    def __init__(
        self,
        engine_loop: EngineLoop[Any],
        settings: ModelServerSettings,
        prefixes: PrefixTier | None,
        adapters: AdapterSlots | None,
    ) -> None:
        self._engine_loop = engine_loop
        self._access = settings.access
        self._model_id = settings.public_model_id
        self._prefixes = prefixes
        self._adapters = adapters
        self.open_streams = OpenStreams(settings.max_open_sequences)

    @asynccontextmanager
    async def open(self, message: speculation_pb2.Open, context: CallContext) -> abc.AsyncIterator[Opened]:
        """The sequence that a stream's first message opens, with its adapter in a slot until the block ends.

        Raises InvalidArgumentError and its like for everything that does not fit, ResourceExhaustedError when too many
        streams are open.
        """
        tenant = to_tenant(message.tenant, context, self._access)
        with self.open_streams:
            opened = to_sequence(message, self._engine_loop.facts, self._model_id)
            async with self._adapter_slot(message.adapter_digest, tenant) as opened.sequence.adapter_slot:
                digest = await to_digests(opened.sequence, self._engine_loop.facts.block_size)
                if self._prefixes is not None and not message.bypasses_caches:
                    await self._prefixes.fetch(opened.sequence, tenant)
                with self.open_streams.begun():
                    yield opened._replace(digest=digest)

    @asynccontextmanager
    async def _adapter_slot(self, digest: str, tenant: Tenant) -> abc.AsyncIterator[int]:
        if not digest:
            yield NO_SLOT
            return
        if self._adapters is None:
            raise NotFoundError("adapter", digest, "this service has no adapters")
        async with self._adapters.use(digest, tenant) as slot:
            yield slot


async def to_digests(sequence: Sequence, block_size: int) -> int:
    """The digest of a sequence's tokens. Those of its full blocks are made on the way, and kept by it."""
    digest, size = EMPTY_DIGEST, max(1, _PIECE // block_size) * block_size
    for start in range(0, len(sequence), size):
        digest = extend_digest(digest, sequence.token_ids[start : start + size])
        full = min(start + size, len(sequence)) // block_size
        if full:
            sequence.digest_of_block(full - 1, block_size)
        await asyncio.sleep(0)
    return digest


async def first_open(requests: abc.AsyncIterator[Any]) -> speculation_pb2.Open:
    """The message that opens a stream's sequence. Raises InvalidArgumentError when another comes first."""
    first = await anext(aiter(requests), None)
    if first is None or not first.HasField("open"):
        raise InvalidArgumentError("open", "the first message must open the sequence")
    opening: speculation_pb2.Open = first.open
    return opening


def to_tenant(message: speculation_pb2.TenantAccess, context: CallContext, access: Access | None) -> Tenant:
    """Whose a call is. Raises unless it may say so; one that says nothing shares nothing."""
    if message.namespace == PUBLIC_NAMESPACE:
        raise InvalidArgumentError("tenant.namespace", "is nobody's own")
    if len(message.namespace.encode()) > MAX_NAMESPACE_BYTES:
        raise InvalidArgumentError("tenant.namespace", f"must be at most {MAX_NAMESPACE_BYTES} bytes long")
    if message.namespace and access is not None:
        access.check(context, message.namespace)
        if message.num_public_tokens:
            access.check(context, PUBLIC_NAMESPACE)
    return Tenant(message.namespace, bearer_token(context))


def to_sequence(message: speculation_pb2.Open, facts: EngineFacts, model_id: str) -> Opened:
    """The sequence that a message opens, and the length at which it ends.

    Raises NotFoundError for another model, FailedPreconditionError for another revision of it, InvalidArgumentError for
    everything else that does not fit.
    """
    if message.model not in ("", model_id):
        raise NotFoundError("model", message.model, f"this service runs {model_id!r}")
    if message.revision_digest not in ("", facts.description.revision_digest):
        raise FailedPreconditionError(f"this service runs another revision of {model_id!r}", REVISION_CHANGED)
    num_tokens = len(message.token_ids)
    vocab_size, context = facts.description.vocab_size, facts.max_context_tokens
    # Lengths come first: they bound what is gone through.
    if not num_tokens:
        raise InvalidArgumentError("open.token_ids", "must not be empty")
    if num_tokens >= context:
        problem = f"{num_tokens} tokens leave no room in a context of {context} tokens"
        raise InvalidArgumentError("open.token_ids", problem)
    token_ids = list(message.token_ids)
    if max(token_ids) >= vocab_size:
        problem = f"token id {max(token_ids)} is not below the vocabulary's {vocab_size}"
        raise InvalidArgumentError("open.token_ids", problem)
    if not 1 <= message.num_prompt_tokens <= len(token_ids):
        problem = f"must be 1 to {len(token_ids)}, got {message.num_prompt_tokens}"
        raise InvalidArgumentError("open.num_prompt_tokens", problem)
    if message.max_draft_tokens > MAX_DRAFT_TOKENS:
        problem = f"must be 0 to {MAX_DRAFT_TOKENS}, got {message.max_draft_tokens}"
        raise InvalidArgumentError("open.max_draft_tokens", problem)
    if message.adapter_digest:
        check_digest("open.adapter_digest", message.adapter_digest)
    params = to_sampling_params(message, context - message.num_prompt_tokens, facts.description)
    end = min(context, message.num_prompt_tokens + params.max_tokens)
    if len(token_ids) >= end:
        raise InvalidArgumentError("open.sampling.max_tokens", "all of its tokens have been produced already")
    roots = to_roots(message, facts)
    return Opened(Sequence(token_ids, message.num_prompt_tokens, params, priority=message.priority, roots=roots), end)


def to_roots(message: speculation_pb2.Open, facts: EngineFacts) -> Roots:
    """Whose a sequence's blocks are. Nobody's are never found again."""
    tenant = message.tenant
    if not tenant.namespace or message.bypasses_caches:
        return Roots(os.urandom(32))
    if tenant.num_public_tokens > message.num_prompt_tokens:
        raise InvalidArgumentError("open.tenant.num_public_tokens", "there are more than tokens of the prompt")

    def root(namespace: str) -> bytes:
        return identity_digest(
            namespace=namespace,
            model=facts.description.revision_digest,
            adapter=message.adapter_digest,
            kv=facts.kv_identity,
            block_size=facts.block_size,
            first_position=0,
        )

    return Roots(
        own=root(tenant.namespace),
        public=root(PUBLIC_NAMESPACE),
        num_public_blocks=tenant.num_public_tokens // facts.block_size,
        label=tenant.namespace,
        public_label=PUBLIC_NAMESPACE,
    )


def to_sampling_params(message: speculation_pb2.Open, room: int, model: ModelDescription) -> SamplingParams:
    """Sampling parameters with their defaults; `room` tokens fit behind the prompt."""
    sampling = message.sampling
    if not sampling.HasField("seed"):
        raise InvalidArgumentError("open.sampling.seed", "must be set")
    given = {
        field.name: getattr(sampling, field.name) for field, _ in sampling.ListFields() if field.name not in _LISTS
    }
    given.setdefault("max_tokens", room)
    check_lengths(message)
    bad_words = tuple(tuple(word.token_ids) for word in message.bad_words)
    if not all(bad_words):
        raise InvalidArgumentError("open.bad_words", "must not hold an empty one")
    _check_ids("open.sampling.logit_bias", sampling.logit_bias, model.vocab_size)
    _check_ids("open.sampling.stop_token_ids", sampling.stop_token_ids, model.vocab_size)
    _check_ids("open.bad_words", (token_id for word in bad_words for token_id in word), model.vocab_size)
    stop_token_ids = frozenset(sampling.stop_token_ids)
    try:
        return SamplingParams(
            **given,
            logit_bias=dict(sampling.logit_bias),
            stop_token_ids=stop_token_ids,
            barred_at_first=stop_token_ids | frozenset(() if sampling.ignore_eos else model.eos_token_ids),
            bad_words=bad_words,
        )
    except InvalidSamplingError as error:
        first, *more = (FieldViolation(f"open.sampling.{name}", problem) for name, problem in error.violations)
        raise InvalidArgumentError(*first, *more) from error


def check_lengths(message: speculation_pb2.Open) -> None:
    """Raises InvalidArgumentError for more of anything than a sequence may have. Nothing is gone through before that:
    millions of words take minutes.
    """
    lists: dict[str, abc.Sized] = {
        "sampling.logit_bias": message.sampling.logit_bias,
        "sampling.stop_token_ids": message.sampling.stop_token_ids,
        "bad_words": message.bad_words,
    }
    lists |= {f"bad_words[{index}]": word.token_ids for index, word in enumerate(message.bad_words[:MAX_LOGIT_BIASES])}
    for field, entries in lists.items():
        if len(entries) > MAX_LOGIT_BIASES:
            raise InvalidArgumentError(f"open.{field}", f"at most {MAX_LOGIT_BIASES} entries, got {len(entries)}")


def _check_ids(field: str, token_ids: abc.Iterable[int], vocab_size: int) -> None:
    highest = max(token_ids, default=0)
    if highest >= vocab_size:
        raise InvalidArgumentError(field, f"token id {highest} is not below the vocabulary's {vocab_size}")
