"""Scripted verifier and draft services: real gRPC, no model. The text is a fixed function of the tokens before it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from paceline.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from paceline.internal.v1 import (
    draft_pb2,
    draft_pb2_grpc,
    model_server_pb2,
    model_server_pb2_grpc,
    speculation_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)
from paceline.v1 import model_pb2, sampling_pb2
from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.server import Served
from services.common.tls_settings import ServerTls
from services.model_server.client import TAKEN
from support.served import SERVER, served

INFO = model_pb2.ModelInfo(id="fake", max_context_tokens=512, vocab_size=256, eos_token_ids=[255])


def continue_from(token_ids: Sequence[int], count: int) -> list[int]:
    """The next tokens: printable bytes that depend on all that came before."""
    text = list(token_ids)
    for _ in range(count):
        text.append(65 + (sum(text) * 31 + len(text)) % 26)
    return text[len(token_ids) :]


@dataclass(kw_only=True)
class FakeModelServer(model_server_pb2_grpc.ModelServerServiceServicer):
    """Says what runs there."""

    info: model_pb2.ModelInfo = field(default_factory=lambda: INFO)
    is_loading: bool = False
    place: str = ""
    step_seconds: float = 0.0
    """How long its step has taken so far, as it says."""
    prefetches: list[model_server_pb2.PrefetchAdapterRequest] = field(default_factory=list)
    prefetched: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetModel(self, request: object, context: object) -> model_server_pb2.GetModelResponse:
        if self.is_loading:
            raise UnavailableError("the model is being loaded", retry_after_seconds=1.0)
        return model_server_pb2.GetModelResponse(model_info=self.info, place=self.place, step_seconds=self.step_seconds)

    async def ListAdapterModules(self, request: object, context: object) -> model_server_pb2.ListAdapterModulesResponse:
        module = model_server_pb2.AdapterModule(name="model.layers.0.self_attn.q_proj", in_features=8, out_features=8)
        return model_server_pb2.ListAdapterModulesResponse(modules=[module])

    async def PrefetchAdapter(
        self, request: model_server_pb2.PrefetchAdapterRequest, context: object
    ) -> model_server_pb2.PrefetchAdapterResponse:
        self.prefetches.append(request)
        self.prefetched.set()
        return model_server_pb2.PrefetchAdapterResponse()


@dataclass
class FakeVerifier(FakeModelServer, verifier_pb2_grpc.VerifierServiceServicer):
    """Commits tokens of `script` (or of `continue_from`) in pieces, until told to break."""

    script: list[int] | None = None
    piece: int = 3
    break_after: int | None = None
    """Aborts every stream with `break_code` after this many commits; with 0 it is not taken at all."""
    break_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    hang: bool = False
    crash_on: int | None = None
    """Once it has taken a sequence that holds this token it is gone, with all of its streams, and started again."""
    crashed: asyncio.Event = field(default_factory=asyncio.Event)
    opens: list[speculation_pb2.Open] = field(default_factory=list)
    proposals: list[speculation_pb2.Proposal] = field(default_factory=list)
    proposed: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    room: int | None = None
    """As many streams may be open; others are refused."""
    num_open: int = 0
    most_open: int = 0
    """Most streams that were open at once."""
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    commit_when: asyncio.Event | None = None
    """When set, nothing is committed before it."""
    num_wanted: int = 4
    commits_first: bool = False
    """Whether one commit comes before that."""

    async def Verify(
        self, request_iterator: AsyncIterator[verifier_pb2.VerifyRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        opening = (await anext(aiter(request_iterator))).open
        await self._check_revision(opening, context)
        self.opens.append(opening)
        if self.num_open == self.room:
            raise ResourceExhaustedError("no room", retry_after_seconds=1.0)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        self.all_closed.clear()
        self.opened.set()
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            await self._check_alive(context)
            if self.break_after != 0:
                await context.send_initial_metadata(TAKEN)
            if self.crash_on in opening.token_ids:
                self.crashed.set()
            await self._check_alive(context)
            if self.hang:
                await asyncio.Event().wait()
            if self.commit_when is not None and not self.commits_first:
                waits = [asyncio.create_task(event.wait()) for event in (self.commit_when, self.crashed)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
                await self._check_alive(context)
            async for response in self._commits(opening, context):
                yield response
            # As a real one does: a stream whose server has ended breaks when one more proposal is written to it.
            await asyncio.wait([reader], timeout=5)
        finally:
            reader.cancel()
            self.num_open -= 1
            if not self.num_open:
                self.all_closed.set()
                self.crashed.clear()  # It is started again.

    async def _check_alive(self, context: grpc.aio.ServicerContext) -> None:
        if self.crashed.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async def _check_revision(self, opening: speculation_pb2.Open, context: grpc.aio.ServicerContext) -> None:
        if opening.revision_digest not in ("", self.info.revision_digest):
            raise FailedPreconditionError("another revision runs here", "REVISION_CHANGED")

    async def _commits(
        self, opening: speculation_pb2.Open, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        text = list(opening.token_ids)
        end = opening.num_prompt_tokens + (opening.sampling.max_tokens or 100)
        if self.script is not None:
            end = min(end, opening.num_prompt_tokens + len(self.script))
        count = 0
        while len(text) < end:
            if count == self.break_after:
                await context.abort(self.break_code, "broken on purpose")
            produced = len(text) - opening.num_prompt_tokens
            size = min(self.piece, end - len(text))
            tokens = continue_from(text, size) if self.script is None else self.script[produced : produced + size]
            commit = speculation_pb2.Commit(
                anchor=speculation_pb2.Anchor(position=len(text), digest=extend_digest(EMPTY_DIGEST, text)),
                token_ids=tokens,
                num_accepted=size - 1,
                num_drafted=size - 1,
                num_wanted=self.num_wanted,
            )
            text += tokens
            count += 1
            if len(text) == end:
                commit.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
            yield verifier_pb2.VerifyResponse(commit=commit)
            if self.commits_first and self.commit_when is not None:
                await self.commit_when.wait()

    async def _read(self, requests: AsyncIterator[verifier_pb2.VerifyRequest]) -> None:
        async for request in requests:
            self.proposals.append(request.proposal)
            self.proposed.set()


@dataclass
class FakeDraft(FakeModelServer, draft_pb2_grpc.DraftServiceServicer):
    """Answers the opening and every commit with one proposal of one token, until told to break."""

    break_after: int | None = None
    opens: list[speculation_pb2.Open] = field(default_factory=list)
    commits: list[speculation_pb2.Commit] = field(default_factory=list)
    num_open: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def Propose(
        self, request_iterator: AsyncIterator[draft_pb2.ProposeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[draft_pb2.ProposeResponse]:
        self.num_open += 1
        self.all_closed.clear()
        self.opened.set()
        try:
            count = 0
            async for request in request_iterator:
                if request.HasField("open"):
                    self.opens.append(request.open)
                else:
                    self.commits.append(request.commit)
                if count == self.break_after:
                    await context.abort(grpc.StatusCode.INTERNAL, "broken on purpose")
                count += 1
                anchor = speculation_pb2.Anchor(position=count)
                yield draft_pb2.ProposeResponse(proposal=speculation_pb2.Proposal(anchor=anchor, token_ids=[count]))
        finally:
            self.num_open -= 1
            if not self.num_open:
                self.all_closed.set()


@asynccontextmanager
async def serve_fakes(
    *servicers: FakeVerifier | FakeDraft,
    port: int = 0,
    beside: Callable[[grpc.aio.Server], object] | None = None,
    tls: ServerTls | None = None,
    grace_seconds: float = SERVER.grace_seconds,
) -> AsyncIterator[str]:
    """Address of a server with these servicers and what `beside` adds; port 0 takes a free one."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        # Where a verifier and a draft share an address, what the first of them says of its model counts for both.
        model_server_pb2_grpc.add_ModelServerServiceServicer_to_server(servicers[0], server)
        for servicer in servicers:
            if isinstance(servicer, FakeVerifier):
                verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server)
            else:
                draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server)
        if beside is not None:
            beside(server)
        yield Served(())

    settings = SERVER.model_copy(update={"port": port, "tls": tls, "grace_seconds": grace_seconds})
    async with served(lifespan, settings) as address:
        yield address
