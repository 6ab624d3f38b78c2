"""One model that is served: its tokenizer, its replicas, and what they say of themselves."""

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from gateway.model.attempts import NoneSuitsError
from gateway.model.chat_template import Conversation
from gateway.model.replica import Replica
from gateway.model.replicas import Replicas
from gateway.model.retry_budget import RetryBudget
from gateway.model.tokenizer import ModelTokenizer
from gateway.model.vigil import Vigil, hangs
from gateway.settings import ModelSettings
from paceline.errors import FailedPreconditionError, UnavailableError
from paceline.internal.v1 import adapter_store_pb2, model_server_pb2
from paceline.v1 import adapter_pb2, model_pb2, sampling_pb2
from services.common.backoff import Backoff
from services.common.identities import Identity
from services.common.tls_settings import ChannelTls, tls_to
from services.common.vocabulary import problem_of
from services.draft.client import DraftClient
from services.verifier.client import VerifierClient

_log = logging.getLogger(__name__)
_ASK_SECONDS = 5.0
_RETRY_AFTER_SECONDS = 1.0
Verifiers: TypeAlias = Replicas[VerifierClient, model_pb2.ModelInfo]
Drafts: TypeAlias = Replicas[DraftClient, model_pb2.ModelInfo]


def _draft_pauses() -> Backoff:
    return Backoff(0.25, 2.0)


class DraftBeside(NamedTuple):
    """A draft, as seen from a verifier."""

    revision_digest: str
    is_apart: bool
    """Whether it runs on another machine or device: else what it does takes from the verifier."""


class ServedModel:
    """All that belongs to one model. Its verifiers run the same target; a draft knows the target's tokens."""

    def __init__(
        self,
        settings: ModelSettings,
        tokenizer: ModelTokenizer,
        public: Sequence[Sequence[int]],
        tls: ChannelTls | None = None,
    ) -> None:
        """`public` holds the token ids of prefixes that all callers share; `tls` encrypts calls to its services."""
        self.id = settings.id
        self.draft_tokens = settings.draft_tokens
        self.tokenizer = tokenizer
        self.verifiers: Verifiers = Replicas.connect(
            f"verifier of {self.id!r}", settings.verifiers, VerifierClient, self._ask_verifier,
            tls=tls_to(Identity.VERIFIER, tls),
        )  # fmt: skip
        self.drafts: Drafts = Replicas.connect(
            f"draft of {self.id!r}", settings.drafts, DraftClient, self._ask_draft, _draft_pauses,
            tls=tls_to(Identity.DRAFT, tls),
        )  # fmt: skip
        self.retries = RetryBudget(self.verifiers)
        self.trials = asyncio.Lock()
        """It is held by the one request that verifiers may have died of and that is being tried again."""
        self.vigil = Vigil()
        self._public = public
        self._uses_generation_config = settings.generation_config
        self._told: set[str] = set()
        """What was logged of drafts that do not suit."""
        self._places: dict[str, str] = {}
        """Where services run, by their gRPC target; empty where one does not say."""
        self._own_drafts: dict[str, model_pb2.ModelInfo | None] = {}
        """Drafts that run in a verifier's process, by its gRPC target."""
        self._revisions: list[str] = []
        """Digests of all revisions that were met, in the order in which verifiers changed to them."""

    @classmethod
    async def load(cls, settings: ModelSettings, tls: ChannelTls | None = None) -> "ServedModel":
        """Loads the tokenizer. Raises CheckpointError where there is none that can be used."""
        tokenizer = await asyncio.to_thread(ModelTokenizer, settings.tokenizer)
        # What comes after the system message, here an empty user message, is left out when prompts are compared.
        chats = [
            [{"role": "system", "content": message}, {"role": "user", "content": ""}]
            for message in settings.public_system_messages
        ]
        prefixes = [await tokenizer.encode(prefix) for prefix in settings.public_prefixes]
        prefixes += [await tokenizer.encode_chat(Conversation(chat)) for chat in chats]
        return cls(settings, tokenizer, prefixes, tls)

    @property
    def newest(self) -> model_pb2.ModelInfo | None:
        """The target at the newest revision that a verifier which is there runs; else as last heard of, if ever."""
        known = [replica for replica in self.verifiers if replica.info is not None]
        best = max(known, key=lambda replica: (replica.is_there, self._age(replica)), default=None)
        return None if best is None else best.info

    async def info(self) -> model_pb2.ModelInfo:
        """The target that new requests get. Raises UnavailableError while no verifier has said what it runs."""
        if self.newest is None:
            await self.verifiers.look()
        newest = self.newest
        if newest is None:
            raise UnavailableError(f"no verifier of model {self.id!r} has answered yet", _RETRY_AFTER_SECONDS)
        return newest

    def suits(self, draft: model_pb2.ModelInfo) -> bool:
        """Whether a draft knows the target's tokens."""
        problem = self.problem_of(draft)
        if problem and problem not in self._told:
            self._told.add(problem)
            _log.error("a draft of model %r is not used: %s", self.id, problem)
        return self.newest is not None and not problem

    def sampling_defaults(self, info: model_pb2.ModelInfo) -> sampling_pb2.SamplingParams:
        """Sampling parameters of requests that do not say otherwise."""
        return info.sampling_defaults if self._uses_generation_config else sampling_pb2.SamplingParams()

    def draft_beside(self, verifier: VerifierClient) -> DraftBeside | None:
        """The draft that proposes for what a verifier has; None where there is none."""
        known = [replica for replica in self.drafts if replica.is_there and replica.info is not None]
        beside = next((replica for replica in known if replica.may_suit(self.suits)), None)
        if beside is None or beside.info is None:
            return None
        places = [self._places.get(client.target, "") for client in (verifier, beside.client)]
        return DraftBeside(beside.info.revision_digest, is_apart=all(places) and places[0] != places[1])

    async def speculation(self) -> list[model_pb2.SpeculationState]:
        """What its verifiers measured of speculation. Raises UnavailableError when none can be reached."""
        return await self.verifiers.call_each(lambda verifier: verifier.get_speculation(_ASK_SECONDS))

    def num_public_tokens(self, prompt_ids: Sequence[int]) -> int:
        """Leading tokens of a prompt that all callers share: any part of a public prefix, from its beginning."""
        return max((_num_common(prefix, prompt_ids) for prefix in self._public), default=0)

    async def describe(self) -> model_pb2.Model:
        """What clients are told, also where no verifier can be used."""
        await asyncio.gather(self.verifiers.look(), self.drafts.look())
        there = [replica.info for replica in self.drafts if replica.is_there and replica.info is not None]
        own = [self._own_drafts.get(replica.client.target) for replica in self.verifiers if replica.is_there]
        drafts = [draft for draft in own if draft is not None]
        drafts += [draft for draft in there if self.newest is None or self.suits(draft)]
        problems = [problem for draft in there if (problem := self.problem_of(draft))]
        return model_pb2.Model(
            target=self.newest or model_pb2.ModelInfo(id=self.id),
            draft=drafts[0] if drafts else None,
            has_chat_template=self.tokenizer.has_chat_template,
            available=any(replica.is_there for replica in self.verifiers),
            draft_problem=problems[0] if problems and not drafts else "",
        )

    async def adapter_base(self, role: "adapter_pb2.AdapterRole.ValueType") -> adapter_store_pb2.AdapterBase:
        """What an adapter has to fit. Raises FailedPreconditionError where there are no adapters."""
        if role == adapter_pb2.ADAPTER_ROLE_DRAFT:
            try:
                info, modules = await self.drafts.call(_info_and_modules, suits=self.suits)
            except (NoneSuitsError, UnavailableError) as error:
                raise FailedPreconditionError("there is no draft that takes adapters") from error
        else:
            info, modules = await self.verifiers.call(_info_and_modules)
            info.id = self.id
        if not modules:
            raise FailedPreconditionError("the model takes no adapters")
        return adapter_store_pb2.AdapterBase(model=info.id, revision_digest=info.revision_digest, modules=modules)

    async def ready(self) -> None:
        """Waits until a verifier has said what it runs; drafts are asked meanwhile."""
        self.drafts.ask_those_due()
        await self.verifiers.ready()

    async def close(self) -> None:
        """Ends all channels."""
        await self.verifiers.close()
        await self.drafts.close()

    def _age(self, replica: "Replica[VerifierClient, model_pb2.ModelInfo]") -> int:
        """When a verifier's revision was changed to, among all."""
        return -1 if replica.info is None else self._revisions.index(replica.info.revision_digest)

    async def _ask_verifier(self, verifier: VerifierClient) -> model_pb2.ModelInfo:
        """What a verifier runs, under the name that clients know. What one changes to is the newest revision."""
        info = await self._describe(verifier)
        info.id = self.id
        before = next(replica.info for replica in self.verifiers if replica.client is verifier)
        digest = info.revision_digest
        if before is not None and before.revision_digest != digest:
            _log.warning("verifier %s has model %r at another revision: %s", verifier.target, self.id, digest)
            if digest in self._revisions:
                self._revisions.remove(digest)
        if digest not in self._revisions:
            self._revisions.append(digest)
        return info

    async def _describe(self, client: VerifierClient | DraftClient) -> model_pb2.ModelInfo:
        described = await client.describe(_ASK_SECONDS)
        if reason := hangs(described):
            raise UnavailableError(reason)
        self._places[client.target] = described.place
        self._own_drafts[client.target] = described.own_draft if described.HasField("own_draft") else None
        return described.model_info

    async def _ask_draft(self, draft: DraftClient) -> model_pb2.ModelInfo:
        return await self._describe(draft)

    def problem_of(self, draft: model_pb2.ModelInfo) -> str:
        """Why a draft is of no use to the target, in a sentence; empty while nothing is known against it."""
        newest = self.newest
        return "" if newest is None else problem_of(draft.id, draft, newest)


async def _info_and_modules(
    client: VerifierClient | DraftClient,
) -> tuple[model_pb2.ModelInfo, list[model_server_pb2.AdapterModule]]:
    return await client.get_model(_ASK_SECONDS), await client.list_adapter_modules(_ASK_SECONDS)


def _num_common(prefix: Sequence[int], token_ids: Sequence[int]) -> int:
    """Leading tokens that are the same."""
    pairs = enumerate(zip(prefix, token_ids, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(prefix), len(token_ids)))
