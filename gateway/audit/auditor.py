"""Whether speculation changes tokens, watched all the time: some finished requests are computed once more without it.

That happens on what others leave idle, at another verifier where there is one, with nothing that was computed before,
and on nobody's account. What differs is counted token by token: behind one that differs the text goes on as it was, so
that one mistake is counted once. Prompts are kept in memory until then, and no more of them than a bounded number of
tokens.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import grpc
from opentelemetry import trace

from gateway.audit.sample import Sample
from gateway.audit.tally import Fate, Tallies
from gateway.generation.admission import Admission
from gateway.generation.outcome import Outcome, Record
from gateway.model.attempts import LostError
from gateway.model.catalogue import Catalogue
from gateway.model.replica import Replica
from gateway.model.served_model import ServedModel
from gateway.tenants.grants import Grants
from paceline.errors import PacelineError
from paceline.v1 import model_pb2
from services.verifier.client import VerifierClient

_TRACER = trace.get_tracer("paceline.audit")
_log = logging.getLogger(__name__)
_MAX_SECONDS = 900.0
"""A sequence that takes longer is given up: there is too little idle time for it."""
_MAX_MISMATCHES = 16
"""Mistakes of one sequence behind which it is not looked at further."""


class _Compared(NamedTuple):
    """Tokens in a row that were the same; and whether the text ended, rather than going on with another one."""

    num_equal: int
    is_over: bool


class Auditor:
    """Computes once more what finished, one sequence at a time."""

    def __init__(
        self, share: float, max_tokens: int, catalogue: Catalogue, admission: Admission, grants: Grants
    ) -> None:
        """`share` of the requests that finish is looked at, while no more than `max_tokens` wait."""
        self._share = share
        self._max_tokens = max_tokens
        self._catalogue = catalogue
        self._admission = admission
        self._grants = grants
        self._waiting: deque[Sample] = deque()
        self._num_tokens = 0
        self._has_some = asyncio.Event()
        self._tallies = Tallies((model.id for model in catalogue), lambda: len(self._waiting))

    def consider(self, record: Record) -> None:
        """Takes a request that ended, if its lot is drawn.

        What another gateway began is left out: of its first tokens there is only what the client says.
        """
        if record.outcome is not Outcome.FINISHED or record.received is not None or random.random() >= self._share:
            return
        for transcript, choice in zip(record.transcripts, record.choices, strict=True):
            num_tokens = choice.usage.num_completion_tokens
            self.add(Sample.of(record.request_id, record.model, transcript, num_tokens))

    def add(self, sample: Sample) -> None:
        """Has a sequence computed once more, unless too much waits already."""
        if self._num_tokens + sample.num_tokens > self._max_tokens:
            self._tallies.over(sample.model, Fate.DROPPED)
            return
        self._num_tokens += sample.num_tokens
        self._waiting.append(sample)
        self._has_some.set()

    def found(self, model: str) -> model_pb2.ParityAudit:
        """What was found of a model since the gateway began."""
        tally = self._tallies.of[model]
        return model_pb2.ParityAudit(
            share=self._share,
            num_sequences=tally.num_sequences,
            num_tokens=tally.num_tokens,
            num_mismatches=tally.num_mismatches,
            num_waiting=sum(1 for sample in self._waiting if sample.model == model),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works while the block lasts; what waits then is forgotten."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._has_some.wait()
            await self._admission.has_room()
            sample = self._waiting[0]
            try:
                with _TRACER.start_as_current_span("parity audit") as span:
                    span.set_attribute("paceline.request_id", sample.request_id)
                    async with asyncio.timeout(_MAX_SECONDS):
                        await self._audit(sample)
            except (LostError, TimeoutError, PacelineError, grpc.aio.AioRpcError) as error:
                _log.info("request %s was not computed once more: %s", sample.request_id, error)
                self._tallies.over(sample.model, Fate.SKIPPED)
            except Exception:
                _log.exception("request %s was not computed once more", sample.request_id)
                self._tallies.over(sample.model, Fate.SKIPPED)
            self._waiting.popleft()
            self._num_tokens -= sample.num_tokens
            if not self._waiting:
                self._has_some.clear()

    async def _audit(self, sample: Sample) -> None:
        """Computes a sequence once more, from one mistake to the next."""
        model = self._catalogue.get(sample.model)
        replica = _choose(model, sample)
        if replica is None:
            self._tallies.over(sample.model, Fate.SKIPPED)
            return
        at = num_mismatches = 0
        while at < len(sample.produced) and num_mismatches < _MAX_MISMATCHES:
            num_equal, is_over = await self._compare(model, replica, sample, at)
            at += num_equal
            differs = at < len(sample.produced)
            self._tallies.compared(sample.model, num_equal + differs, int(differs))
            if differs:
                _log.error(
                    "request %s of model %r: verifier %s has another token at %d than %s had with speculation",
                    *(sample.request_id, sample.model, replica.client.target, at),
                    " and ".join(sorted(sample.verifiers)),
                )
                at += 1
                num_mismatches += 1
            if is_over:
                break
        self._tallies.over(sample.model, Fate.COMPARED, elsewhere=replica.client.target not in sample.verifiers)

    async def _compare(
        self,
        model: ServedModel,
        replica: Replica[VerifierClient, model_pb2.ModelInfo],
        sample: Sample,
        at: int,
    ) -> _Compared:
        """Computes the tokens from `at` on until one differs from what it was."""
        token = self._grants.sequence_token(sample.opening.tenant)
        expected, count = sample.produced[at:], 0
        attempts = model.verifiers.attempts(0)
        async with attempts.use(replica) as use, use.client.verify(None, token) as stream:
            with model.vigil.over(use, attempts, stream):
                await stream.open(sample.message(at))
                while (commit := await stream.next_commit()) is not None:
                    use.worked()
                    for token_id, other in zip(commit.token_ids, expected[count:], strict=False):
                        if token_id != other:
                            return _Compared(count, is_over=False)
                        count += 1
                    if commit.finish_reason or count == len(expected):
                        return _Compared(count, is_over=True)
        raise LostError("the stream ended early")


def _choose(model: ServedModel, sample: Sample) -> Replica[VerifierClient, model_pb2.ModelInfo] | None:
    """A verifier of the sequence's revision: rather one that did not decide its tokens, then one with little to do."""

    def suits(info: model_pb2.ModelInfo) -> bool:
        return info.revision_digest == sample.opening.revision_digest

    free = [replica for replica in model.verifiers if replica.is_free_for(suits)]
    return min(free, key=lambda replica: (replica.client.target in sample.verifiers, replica.num_uses), default=None)
