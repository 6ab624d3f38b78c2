"""One token sequence in an engine: its tokens, how many are computed, and where their KV lies.

A sequence is runnable exactly when it has tokens not computed yet. A prompt is many of them, decoding is one, verifying
is the last token and the proposed ones; rejecting is truncating; eviction is "nothing computed".
"""

from collections import abc

from services.common.background import BACKGROUND_PRIORITY
from services.common.sampling_params import SamplingParams
from services.engine.roots import NO_ROOTS, Roots

NO_SLOT = -1
"""This stands in place of an adapter slot for the base model."""


class Sequence:
    """State of one sequence. Owned by the engine's thread."""

    __slots__ = (
        "adapter_slot",
        "arrival",
        "block_digests",
        "block_table",
        "first_logits",
        "hold_until",
        "is_new",
        "num_cached",
        "num_computed",
        "num_prompt_tokens",
        "num_registered",
        "num_runners_up",
        "num_settled",
        "params",
        "priority",
        "roots",
        "token_ids",
    )

    def __init__(
        self,
        token_ids: abc.Sequence[int],
        num_prompt_tokens: int,
        params: SamplingParams,
        *,
        priority: int = 0,
        roots: Roots = NO_ROOTS,
        num_runners_up: int = 0,
        adapter_slot: int = NO_SLOT,
    ) -> None:
        self.token_ids = list(token_ids)
        self.num_prompt_tokens = num_prompt_tokens
        self.params = params
        self.priority = priority
        self.num_runners_up = num_runners_up
        """Next likely tokens that are wanted beside every pick."""
        self.adapter_slot = adapter_slot
        """Where the adapter sits with which it is computed."""
        self.arrival = 0
        self.num_computed = 0
        self.num_cached = 0
        """Prompt tokens found computed when it was first scheduled; what it loses and finds again later is its own."""
        self.is_new = True
        """Whether it was never scheduled."""
        self.num_settled = len(self.token_ids)
        """Tokens that will never be truncated."""
        self.first_logits = len(self.token_ids) - 1
        """Index of the first token whose logits are wanted; all after it are wanted too."""
        self.hold_until = 0.0
        """Not scheduled before this time of the monotonic clock, in seconds; infinity for not until told."""
        self.block_table: list[int] = []
        self.num_registered = 0
        """So many blocks of the table the pool knows by their content."""
        self.roots = roots
        self.block_digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that the next steps have to compute."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_background(self) -> bool:
        """Whether it runs on what others leave idle."""
        return self.priority == BACKGROUND_PRIORITY

    def fork(self, length: int, priority: int) -> "Sequence":
        """Another sequence that begins with the first `length` tokens of this one. It has no blocks yet."""
        other = Sequence(
            self.token_ids[:length],
            self.num_prompt_tokens,
            self.params,
            priority=priority,
            roots=self.roots,
            num_runners_up=self.num_runners_up,
            adapter_slot=self.adapter_slot,
        )
        other.num_settled = min(self.num_settled, length)
        return other

    def truncate(self, length: int) -> None:
        """Drops all tokens from index `length` on, and what was computed of them."""
        del self.token_ids[length:]
        self.num_computed = min(self.num_computed, length)

    def digest_of_block(self, index: int, block_size: int) -> bytes:
        """Digest of the index-th block and all before it; its tokens must be settled."""
        digests = self.block_digests
        while len(digests) <= index:
            at = len(digests)
            block = self.token_ids[at * block_size : (at + 1) * block_size]
            digests.append(self.roots.digest(at, digests[-1] if at else b"", block))
        return digests[index]
