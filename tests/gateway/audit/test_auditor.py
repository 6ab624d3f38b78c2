"""Finished requests computed once more: what differs is found, wherever the mistake lies, and nobody is in the way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import grpc
import pytest

from gateway.audit.auditor import Auditor
from gateway.audit.sample import Sample
from gateway.generation.generation import Generation
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.internal.v1 import speculation_pb2, verifier_pb2
from paceline.v1 import inference_pb2, model_pb2, sampling_pb2
from services.common.background import BACKGROUND_PRIORITY
from support.fakes import FakeVerifier, continue_from, serve_fakes
from support.generation import Core, OpenAccounts, StartCore, start_core

__all__ = ["start_core"]
PROMPT = [70, 71, 72]
TENANT = Caller("a")


class Liar(FakeVerifier):
    """Every fourth token of what it says is another one, while it verifies proposals, or always."""

    only_with_proposals = False

    async def _commits(
        self, opening: speculation_pb2.Open, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        lies = opening.max_draft_tokens > 0 or not self.only_with_proposals
        text = list(opening.token_ids)
        end = opening.num_prompt_tokens + opening.sampling.max_tokens
        while len(text) < end:
            (token_id,) = continue_from(text, 1)
            if lies and (len(text) - opening.num_prompt_tokens) % 4 == 3:
                token_id += 1
            text.append(token_id)
            commit = speculation_pb2.Commit(token_ids=[token_id])
            if len(text) == end:
                commit.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
            yield verifier_pb2.VerifyResponse(commit=commit)


class Audited(NamedTuple):
    """A core whose requests are all audited."""

    core: Core
    auditor: Auditor
    generation: Generation

    async def run(self, max_tokens: int = 12, **fields: Any) -> None:
        sampling = {"max_tokens": max_tokens, "logprobs": 2, **fields.pop("sampling", {})}
        request = inference_pb2.GenerateRequest(token_ids={"ids": PROMPT}, sampling=sampling, **fields)
        async with self.generation.run(request, TENANT) as events:
            async for _ in events:
                pass

    async def found(self, num_sequences: int = 1) -> model_pb2.ParityAudit:
        """What is found once so many sequences are compared."""
        while (found := self.auditor.found("fake")).num_sequences < num_sequences or found.num_waiting:
            await asyncio.sleep(0.005)
        return found


@asynccontextmanager
async def audited(
    start: StartCore, *verifiers: FakeVerifier, share: float = 1.0, max_tokens: int = 10_000, **more: Any
) -> AsyncIterator[Audited]:
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serve_fakes(verifier)) for verifier in verifiers]
        core = await stack.enter_async_context(start(addresses, **more))
        auditor = Auditor(share, max_tokens, core.catalogue, core.admission, Grants(None))
        await stack.enter_async_context(auditor.running())
        own = core.generation
        generation = Generation(
            own._settings, core.catalogue, core.admission, Grants(None), core.adapters, core.metrics, OpenAccounts(),
            auditor.consider,
        )  # fmt: skip
        for model in core.catalogue:
            await model.verifiers.look()
        yield Audited(core, auditor, generation)


async def test_ordinary_requests_come_out_the_same_without_speculation(start_core: StartCore) -> None:
    verifier = FakeVerifier()
    async with audited(start_core, verifier) as audit:
        await audit.run(n=2, priority=7)
        (model,) = audit.core.catalogue
        await audit.run(sampling={"stop": [await model.tokenizer.decode(continue_from(PROMPT, 5)[-2:])]})
        found = await audit.found(3)
        assert (found.num_mismatches, found.share) == (0, 1.0)
        assert found.num_tokens == 24 + 5, "what was decided behind a stop string is no part of what was answered"
    replays = [opening for opening in verifier.opens if opening.bypasses_caches]
    assert len(replays) == 3
    for opening in replays:
        assert (opening.priority, opening.max_draft_tokens) == (BACKGROUND_PRIORITY, 0)
        assert not opening.sampling.HasField("logprobs")
        assert list(opening.token_ids) == PROMPT
    assert not any(o.bypasses_caches or o.max_draft_tokens == 0 for o in verifier.opens if o not in replays)


async def test_a_verifier_whose_speculation_changes_tokens_is_found_though_it_is_alone(start_core: StartCore) -> None:
    liar = Liar()
    liar.only_with_proposals = True
    async with audited(start_core, liar) as audit:
        await audit.run(16)
        found = await audit.found()
        assert (found.num_tokens, found.num_mismatches) == (16, 4)
    assert len(liar.opens) == 1 + 4  # Behind the last token there is nothing left to open.


async def test_another_replica_computes_it_and_finds_out_who_is_always_wrong(start_core: StartCore) -> None:
    verifiers = [Liar(), FakeVerifier()]
    async with audited(start_core, *verifiers) as audit:
        for _ in range(4):
            await audit.run(8)
            await audit.found(1)
        found = await audit.found(4)
    served = [[o for o in each.opens if not o.bypasses_caches] for each in verifiers]
    replays = [[o for o in each.opens if o.bypasses_caches] for each in verifiers]
    num_lies = len(served[0])
    # What the liar said is computed by the other, and the other's by the liar: either way they differ.
    assert num_lies + len(served[1]) == 4
    assert found.num_mismatches == 2 * 4
    assert len({o.sampling.seed for o in replays[1]}) == num_lies
    assert len({o.sampling.seed for o in replays[0]}) == len(served[1])


@pytest.mark.parametrize("at", [0, 5, 11])
async def test_a_record_that_was_changed_is_found(start_core: StartCore, at: int) -> None:
    async with audited(start_core, FakeVerifier(), share=0.0) as audit:
        await audit.run(12)
        (transcript,) = audit.core.metrics.ended[0].transcripts
        sample = Sample.of("r", "fake", transcript, 12)
        changed = list(sample.produced)
        changed[at] += 1
        audit.auditor.add(Sample(sample.request_id, sample.model, sample.opening, changed, sample.verifiers))
        found = await audit.found()
    # The tokens behind it are not those that would follow it.
    assert found.num_tokens == 12
    assert found.num_mismatches >= 1


async def test_a_text_that_ends_early_the_second_time_is_found(start_core: StartCore) -> None:
    verifier = FakeVerifier()
    async with audited(start_core, verifier, share=0.0) as audit:
        await audit.run(12)
        verifier.script = continue_from(PROMPT, 9)
        (transcript,) = audit.core.metrics.ended[0].transcripts
        audit.auditor.add(Sample.of("r", "fake", transcript, 12))
        found = await audit.found()
    assert (found.num_tokens, found.num_mismatches) == (10, 1)


async def test_a_share_is_a_share(start_core: StartCore, monkeypatch: pytest.MonkeyPatch) -> None:
    lots: Sequence[float] = [0.0, 0.2, 0.25, 0.9]
    drawn = iter(lots)
    monkeypatch.setattr("gateway.audit.auditor.random.random", lambda: next(drawn))
    async with audited(start_core, FakeVerifier(), share=0.25) as audit:
        for _ in lots:
            await audit.run(6)
        assert (await audit.found(2)).num_sequences == 2


async def test_nothing_is_computed_while_requests_wait(start_core: StartCore) -> None:
    verifier = FakeVerifier()
    async with audited(start_core, verifier, max_active_requests=1) as audit:
        async with audit.core.admission.place(0):
            audit.auditor.add(finished())
            for _ in range(20):
                await asyncio.sleep(0)
            assert audit.auditor.found("fake").num_waiting == 1
            assert not any(opening.bypasses_caches for opening in verifier.opens)
        assert (await audit.found()).num_mismatches == 0


def finished() -> Sample:
    """A sequence as it would have finished."""
    sampling = {"max_tokens": 6, "seed": 1}
    opening = speculation_pb2.Open(token_ids=PROMPT, num_prompt_tokens=len(PROMPT), sampling=sampling)
    return Sample("r", "fake", opening, continue_from(PROMPT, 6), frozenset())


async def test_what_waits_is_bounded_and_what_is_too_much_is_left_out(start_core: StartCore) -> None:
    verifier = FakeVerifier(commit_when=asyncio.Event())
    async with audited(start_core, verifier, max_tokens=20) as audit:
        for sample in [finished() for _ in range(4)]:
            audit.auditor.add(sample)
        assert audit.auditor.found("fake").num_waiting == 2
        assert verifier.commit_when is not None
        verifier.commit_when.set()
        assert (await audit.found(2)).num_tokens == 12
        audit.auditor.add(finished())
        assert (await audit.found(3)).num_tokens == 18


async def test_a_verifier_that_is_lost_meanwhile_costs_the_sequence_and_nothing_else(start_core: StartCore) -> None:
    verifier = FakeVerifier()
    async with audited(start_core, verifier) as audit:
        await audit.run(6)
        await audit.found()
        verifier.break_after = 1
        audit.auditor.add(finished())
        while audit.auditor.found("fake").num_waiting:
            await asyncio.sleep(0.005)
        verifier.break_after = None
        for model in audit.core.catalogue:
            while not any(replica.is_free for replica in model.verifiers):
                model.verifiers.ask_those_due()
                await asyncio.sleep(0.01)
        audit.auditor.add(finished())
        assert (await audit.found(2)).num_mismatches == 0


async def test_what_another_gateway_began_is_not_looked_at(start_core: StartCore) -> None:
    """Of its first tokens there is only what the client says."""
    async with audited(start_core, FakeVerifier()) as audit:
        await audit.run(
            12,
            sampling={"seed": 7},
            resume={"request_id": "a" * 32, "choices": [{"token_ids": [1, 2, 3], "num_rounds": 1}]},
        )
        await audit.run(6)
        assert (await audit.found()).num_sequences == 1
