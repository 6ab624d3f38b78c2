"""How a request ended, and what it used until then."""

import time
from array import array
from collections.abc import Sequence
from enum import StrEnum

import grpc

from gateway.generation.choice import Choice
from gateway.generation.transcript import Transcript
from gateway.tenants.identity import Caller
from paceline.errors import PacelineError
from paceline.v1 import inference_pb2, sampling_pb2
from services.common.digest import identity_digest

_FAILED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.ABORTED,
    }
)


_CLOCKS_APART_SECONDS = 0.05
_SUMMED = ("num_completion_tokens", "num_drafted_tokens", "num_accepted_tokens", "num_rounds", "num_ready_rounds")
"""Counts of choices that those of a request are the sums of."""


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    """Whoever asked went away or wanted no more."""
    DEADLINE = "deadline"
    REFUSED = "refused"
    """The request was wrong, or came at a wrong moment: the error says which."""
    FAILED = "failed"
    """The system could not do what it should."""


_ERROR_TYPES = {Outcome.CANCELLED: "CANCELLED", Outcome.DEADLINE: "DEADLINE_EXCEEDED"}


class Record:
    """What is known of one request, from its first moment to its last."""

    def __init__(self, request_id: str, caller: Caller, deadline: float | None, operation: str = "") -> None:
        """`deadline` is in seconds from now; `operation` is what the conventions of telemetry call it."""
        self.request_id = request_id
        self.operation = operation
        self.caller = caller
        self.model = ""
        self.adapter = ""
        """Name of the adapter; empty is the base model."""
        self.revision = self.adapter_digest = ""
        """Digests of the model's revision and of the adapter."""
        self.received: Sequence[inference_pb2.Usage] | None = None
        """What the client had received of each choice before, where another gateway began the request."""
        self.num_prompt_tokens = 0
        self.seed = 0
        self.sampling = sampling_pb2.SamplingParams()
        self.choices: Sequence[Choice] = ()
        self.transcripts: Sequence[Transcript] = ()
        self.is_complete = False
        """Whether all choices finished."""
        self.was_admitted = False
        """Whether it had a place."""
        self.outcome: Outcome | None = None
        """How it ended; None while it runs."""
        self.error_type = ""
        """Name of the status that it ended with, where that is none of success."""
        self.finish_reasons: dict[int, sampling_pb2.FinishReason.ValueType] = {}
        """Why each choice that finished did, by its index."""
        self.time_to_first_token = 0.0
        """In seconds since its admission; 0 until there is one."""
        self.seconds_to_first_token: float | None = None
        """The same since its first moment, what it waited included; None until there is one."""
        self._created = self._began = self._last = time.monotonic()
        self._overdue_at = None if deadline is None else self._began + deadline

    def admitted(self) -> None:
        """Starts the clock: what the request waited for a place does not count."""
        self.was_admitted = True
        self._began = self._last = time.monotonic()

    def tokens(self, count: int) -> float:
        """Notes that so many tokens are handed out, one at least; returns seconds a token since the last."""
        now = time.monotonic()
        gap = (now - self._last) / count
        if self.seconds_to_first_token is None:
            self.time_to_first_token, self.seconds_to_first_token = now - self._began, now - self._created
        self._last = now
        return gap

    def ended(self, error: BaseException | None) -> None:
        """Says how it ended: with this error, or without one."""
        code = error.code if isinstance(error, PacelineError) else None
        if isinstance(error, grpc.aio.AioRpcError):
            code = error.code()
        if self.is_complete:
            self.outcome = Outcome.FINISHED
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED or (code is None and self._is_overdue):
            self.outcome = Outcome.DEADLINE
        elif code is not None:
            self.outcome = Outcome.FAILED if code in _FAILED else Outcome.REFUSED
        else:
            self.outcome = Outcome.FAILED if isinstance(error, Exception) else Outcome.CANCELLED
        if self.outcome is not Outcome.FINISHED:
            self.error_type = code.name if code is not None else _ERROR_TYPES.get(self.outcome, "INTERNAL")

    def started(self) -> inference_pb2.Started:
        """What the client is told first."""
        return inference_pb2.Started(
            request_id=self.request_id,
            model=self.model,
            seed=self.seed,
            num_prompt_tokens=self.num_prompt_tokens,
            sampling=self.sampling,
            revision_digest=self.revision,
            adapter_digest=self.adapter_digest,
        )

    @property
    def queue_seconds(self) -> float:
        """How long it waited for its place, its prompt's tokens being made included."""
        return self._began - self._created

    @property
    def total_seconds(self) -> float:
        """Time since its first moment."""
        return time.monotonic() - self._created

    @property
    def seconds_a_token(self) -> float | None:
        """Of each token behind the first, of each choice; None where there is none."""
        count = self.usage().num_completion_tokens / max(1, len(self.choices)) - 1
        if self.seconds_to_first_token is None or count <= 0:
            return None
        return (self._last - self._created - self.seconds_to_first_token) / count

    @property
    def num_failovers(self) -> int:
        """How often its sequences had to be opened again."""
        return sum(transcript.num_failovers for transcript in self.transcripts)

    @property
    def num_crashes(self) -> int:
        """Verifiers in turn that ended with one of its sequences."""
        return max((transcript.num_crashes for transcript in self.transcripts), default=0)

    def usage(self) -> inference_pb2.Usage:
        """What was used so far."""
        used = _sum([choice.usage for choice in self.choices])
        used.num_prompt_tokens, used.num_cached_tokens = self.num_prompt_tokens, self._num_cached_tokens
        used.time_to_first_token_seconds = self.time_to_first_token
        used.total_seconds = time.monotonic() - self._began
        return used

    def prompt_digest(self) -> str:
        """32 hexadecimal digits by which its prompt is known, should another gateway go on with it; empty where all of
        it was streamed, or nothing was begun.
        """
        if not self.transcripts or (self.outcome is Outcome.FINISHED and self.received is None):
            return ""
        opening = self.transcripts[0].opening
        token_ids = array("I", opening.token_ids[: opening.num_prompt_tokens])
        return identity_digest(prompt=token_ids.tobytes(), adapter=self.adapter_digest).hex()[:32]

    def received_before(self) -> inference_pb2.Usage | None:
        """What the client had received from another gateway; None where the request began here."""
        return None if self.received is None else _sum(self.received)

    def billed(self) -> inference_pb2.Usage:
        """What its tenant pays for: a prompt that nothing was produced from is not."""
        usage = self.usage()
        return usage if usage.num_completion_tokens else inference_pb2.Usage()

    @property
    def _num_cached_tokens(self) -> int:
        # A verifier that goes on with a choice finds tokens that the choice had produced, too.
        found = max((choice.usage.num_cached_tokens for choice in self.choices), default=0)
        return min(found, self.num_prompt_tokens)

    @property
    def _is_overdue(self) -> bool:
        """Whether the deadline is over; the client's may be a little earlier than it seems from here."""
        return self._overdue_at is not None and time.monotonic() >= self._overdue_at - _CLOCKS_APART_SECONDS


def _sum(usages: Sequence[inference_pb2.Usage]) -> inference_pb2.Usage:
    """What choices used together."""
    return inference_pb2.Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in _SUMMED})
