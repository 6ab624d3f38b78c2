"""One token sequence in an engine: its tokens, how many are computed, and where their KV lies.

A sequence is runnable exactly when it has tokens not computed yet. A prompt is many of them, decoding is one, verifying
is the last token and the proposed ones; rejecting is truncating; eviction is "nothing computed".
"""

from collections.abc import Sequence as Tokens

from services.common.digest import block_digest, identity_digest
from services.common.sampling_params import SamplingParams
from services.common.tokens import PUBLIC_NAMESPACE

NO_SLOT = -1
"""Instead of an adapter slot: the base model."""


class Sequence:
    """State of one sequence. Owned by the engine's thread."""

    __slots__ = (
        "adapter_slot",
        "arrival",
        "block_digests",
        "block_table",
        "first_logits",
        "hold_until",
        "namespace",
        "num_cached",
        "num_computed",
        "num_named",
        "num_prompt_tokens",
        "num_public_blocks",
        "num_runners_up",
        "num_settled",
        "params",
        "priority",
        "public_root_digest",
        "root_digest",
        "token_ids",
    )

    def __init__(
        self,
        token_ids: Tokens[int],
        num_prompt_tokens: int,
        params: SamplingParams,
        *,
        priority: int = 0,
        root_digest: bytes = b"",
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
        """Tokens found computed when the sequence was first scheduled."""
        self.num_settled = len(self.token_ids)
        """Tokens that will never be truncated."""
        self.first_logits = len(self.token_ids) - 1
        """Index of the first token whose logits are wanted; all after it are wanted too."""
        self.hold_until = 0.0
        """Not scheduled before this time of the monotonic clock, in seconds; infinity for not until told."""
        self.block_table: list[int] = []
        self.num_named = 0
        """Blocks of the table whose content is known to the pool."""
        self.root_digest = root_digest
        """Stands for whose the sequence is and what computes it. Equal blocks under another root are others."""
        self.public_root_digest = b""
        self.num_public_blocks = 0
        """Leading blocks that are under the public root instead, and so shared by all."""
        self.namespace = ""
        """Under which its blocks may be kept elsewhere; empty: they may not."""
        self.block_digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that the next steps have to compute."""
        return len(self.token_ids) - self.num_computed

    def fork(self, length: int, priority: int) -> "Sequence":
        """Another sequence that begins with the first `length` tokens of this one. It has no blocks yet."""
        other = Sequence(
            self.token_ids[:length],
            self.num_prompt_tokens,
            self.params,
            priority=priority,
            root_digest=self.root_digest,
            num_runners_up=self.num_runners_up,
            adapter_slot=self.adapter_slot,
        )
        other.num_settled = min(self.num_settled, length)
        other.public_root_digest, other.num_public_blocks = self.public_root_digest, self.num_public_blocks
        other.namespace = self.namespace
        return other

    def truncate(self, length: int) -> None:
        """Drops all tokens from index `length` on, and what was computed of them."""
        del self.token_ids[length:]
        self.num_computed = min(self.num_computed, length)

    def digest_of_block(self, index: int, block_size: int) -> bytes:
        """Digest of the index-th block and all before it; its tokens must be settled."""
        while len(self.block_digests) <= index:
            start = len(self.block_digests) * block_size
            parent = self.block_digests[-1] if self.block_digests else self._first_parent()
            if start == self.num_public_blocks * block_size and start:
                parent = identity_digest(root=self.root_digest, parent=parent)
            self.block_digests.append(block_digest(parent, self.token_ids[start : start + block_size]))
        return self.block_digests[index]

    def namespace_of_block(self, index: int) -> str:
        """Where the index-th block may be kept; empty for nowhere."""
        return PUBLIC_NAMESPACE if self.namespace and index < self.num_public_blocks else self.namespace

    def _first_parent(self) -> bytes:
        return self.public_root_digest if self.num_public_blocks else self.root_digest
