"""KV blocks by number and by content: reference-counted, reused least recently used first.

Block 0 is the null block. It pads block tables and is never handed out. Every other block is free (holds nothing),
cached (content known by digest, referenced by nobody, reusable) or used (referenced by one sequence or more).
"""

from collections import OrderedDict

NULL_BLOCK = 0


class BlockPool:
    """Accounts for `num_blocks` blocks, the null block included. Holds no tensors."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a block pool needs at least 2 blocks, got {num_blocks}")
        self.num_blocks = num_blocks
        self._free = dict.fromkeys(range(num_blocks - 1, NULL_BLOCK, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can still hand out."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence references."""
        return self.num_blocks - 1 - self.num_available

    def allocate(self, after: int = NULL_BLOCK) -> int | None:
        """A block of unknown content with one reference, or None when all are used.

        The block that follows `after` is taken when it is free: KV that lies in a row is read without copying it.
        """
        if after + 1 in self._free:
            block = after + 1
            del self._free[block]
        elif self._free:
            block, _ = self._free.popitem()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        else:
            return None
        self._references[block] = 1
        return block

    def take(self, digest: bytes) -> int | None:
        """The block of this content with one more reference, or None when there is none."""
        block = self._by_digest.get(digest)
        if block is None:
            return None
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1
        return block

    def find(self, digest: bytes) -> int | None:
        """The block of this content, without a reference: good until the next `allocate`."""
        return self._by_digest.get(digest)

    def share(self, block: int) -> None:
        """Adds a reference to a used block."""
        if block == NULL_BLOCK or self._references[block] < 1:
            raise ValueError(f"block {block} is not in use")
        self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether a block has more than one reference."""
        return self._references[block] > 1

    def release(self, block: int, *, forget: bool = False) -> None:
        """Drops one reference; the last one leaves the block cached when its content is known, else free.

        With `forget` its content is known no longer: for one that no sequence but this one has.
        """
        if block == NULL_BLOCK or self._references[block] < 1:
            raise ValueError(f"block {block} is not in use")
        if forget:
            self._forget(block)
        self._references[block] -= 1
        if self._references[block]:
            return
        if self._digests[block] is None:
            self._free[block] = None
        else:
            self._cached[block] = None

    def register(self, block: int, digest: bytes) -> None:
        """Makes the content of a used block known. The first block of a digest keeps it."""
        if self._references[block] < 1:
            raise ValueError(f"block {block} is not in use")
        if digest not in self._by_digest and self._digests[block] is None:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def check_integrity(self) -> None:
        """Raises RuntimeError unless free + cached + used = total and the two indexes agree."""
        used = sum(1 for count in self._references if count)
        if len(self._free) + len(self._cached) + used != self.num_blocks - 1:
            raise RuntimeError(f"blocks lost: {len(self._free)} free, {len(self._cached)} cached, {used} used")
        if len(self._free.keys() | self._cached.keys()) != self.num_available:
            raise RuntimeError("a block is free or cached twice")
        for digest, block in self._by_digest.items():
            if self._digests[block] != digest:
                raise RuntimeError(f"block {block} is known under a digest that is not its own")
        if any(self._digests[block] is not None for block in self._free):
            raise RuntimeError("a free block has known content")

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block] = None
