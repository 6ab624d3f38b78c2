"""What the digests of a sequence's KV blocks begin with, and so with whom it shares blocks."""

from collections import abc
from dataclasses import dataclass

from services.common.digest import block_digest, identity_digest


@dataclass(frozen=True, slots=True)
class Roots:
    """Equal blocks under another root are other blocks. The engine asks for no reason: roots and labels are opaque."""

    own: bytes = b""
    """The own root stands for whose the sequence is and what computes it."""
    public: bytes = b""
    """The public root stands for what computes it alone."""
    num_public_blocks: int = 0
    """So many leading blocks are under the public root, and shared by all."""
    label: str = ""
    """Blocks may be kept elsewhere under this label; an empty one means nowhere."""
    public_label: str = ""
    """Public blocks may be kept elsewhere under this one."""

    def digest(self, index: int, before: bytes, token_ids: abc.Sequence[int]) -> bytes:
        """Digest of the index-th block, which holds these tokens and follows the block with digest `before`."""
        parent = before
        if index == 0:
            parent = self.public if self.num_public_blocks else self.own
        elif index == self.num_public_blocks:
            parent = identity_digest(root=self.own, parent=before)
        return block_digest(parent, token_ids)

    def label_of(self, index: int) -> str:
        """The label under which the index-th block may be kept elsewhere; empty for nowhere."""
        return self.public_label if index < self.num_public_blocks else self.label


NO_ROOTS = Roots()
"""Blocks under these are shared by every sequence that has them too."""
