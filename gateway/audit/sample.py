"""A sequence that is to be computed once more, and how it is asked for: with nothing that might hide a mistake."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.generation.transcript import Transcript
from paceline.internal.v1 import speculation_pb2
from services.common.background import BACKGROUND_PRIORITY

_TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence of a request that finished. It lies in memory alone, and is nobody's but the auditor's."""

    request_id: str
    model: str
    opening: speculation_pb2.Open
    """It holds the prompt."""
    produced: Sequence[int]
    verifiers: frozenset[str]
    """Targets of those that decided its tokens."""

    @classmethod
    def of(cls, request_id: str, model: str, transcript: Transcript, num_tokens: int) -> "Sample":
        """A finished sequence, of which so many tokens were answered: more were decided where a stop string came."""
        verifiers = frozenset(transcript.verifiers)
        return cls(request_id, model, transcript.opening, tuple(transcript.produced[:num_tokens]), verifiers)

    @property
    def num_tokens(self) -> int:
        """Tokens that it keeps in memory; what else its request holds counts as tokens of as many bytes."""
        return max(len(self.opening.token_ids), self.opening.ByteSize() // _TOKEN_BYTES) + len(self.produced)

    def message(self, num_produced: int) -> speculation_pb2.Open:
        """Opens it behind so many of its produced tokens: without speculation, on what others leave idle, and without
        anything that was computed before.
        """
        message = speculation_pb2.Open()
        message.CopyFrom(self.opening)
        message.token_ids.extend(self.produced[:num_produced])
        message.max_draft_tokens = 0
        message.priority = BACKGROUND_PRIORITY
        message.bypasses_caches = True
        message.sampling.ClearField("logprobs")
        for field in ("draft_revision_digest", "draft_is_apart", "num_wanted"):
            message.ClearField(field)
        return message
