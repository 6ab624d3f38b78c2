"""Decides which tokens the next step computes, and gives them KV blocks.

One rule: sequences run in order of priority, then of arrival. Each that is runnable gets as many of its uncomputed
tokens as the step has room for. When blocks run out, the last sequence in that order loses all its blocks and is
computed anew later (preemption by recomputation). While there are others, those in the background get no more rows than
hardly change the time of a step.
"""

import math
from collections import Counter, abc, deque
from typing import NamedTuple

from services.engine.block_pool import NULL_BLOCK, BlockPool
from services.engine.sequence import NO_SLOT, Sequence

_MAX_REGISTERED = 8192


class Work(NamedTuple):
    """Tokens [start, start + num_tokens) of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    num_tokens: int


class Schedule(NamedTuple):
    """What the next step computes. Blocks are copied, (from, to) each, before anything is."""

    works: list[Work]
    copies: list[tuple[int, int]]


class Registered(NamedTuple):
    """A block whose content became known, and the label under which it may be kept elsewhere."""

    label: str
    digest: bytes


class Scheduler:
    """Holds the sequences of an engine and the blocks that they use."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        max_step_tokens: int,
        max_sequences: int,
        spare_rows: abc.Callable[[int], int] | None = None,
    ) -> None:
        """`spare_rows` says how many rows a step of so many has room for that cost next to nothing."""
        self.pool = pool
        self.block_size = block_size
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self._spare_rows = spare_rows or (lambda _: max_step_tokens)
        self.num_preemptions = 0
        self.registered: deque[Registered] = deque(maxlen=_MAX_REGISTERED)
        """Blocks that were computed and may be kept elsewhere wait here to be taken; the oldest fall out."""
        self._arrivals = 0
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> abc.Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens that fit into all blocks together: the longest sequence that can ever be computed."""
        return (self.pool.num_blocks - 1) * self.block_size

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in. Raises ValueError when it can never fit."""
        if len(sequence) > self.max_sequence_tokens:
            raise ValueError(f"{len(sequence)} tokens do not fit into {self.max_sequence_tokens} tokens of KV blocks")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._sequences.append(sequence)
        self._sort()

    def fork(self, sequence: Sequence, length: int, priority: int) -> Sequence:
        """Takes in another sequence that begins with the first `length` tokens of this one, and shares their blocks."""
        other = sequence.fork(length, priority)
        self.add(other)
        other.num_computed = min(sequence.num_computed, length)
        other.block_table = sequence.block_table[: -(-other.num_computed // self.block_size)]
        other.num_registered = min(sequence.num_registered, other.num_computed // self.block_size)
        for block in other.block_table:
            self.pool.share(block)
        return other

    def prioritise(self, sequence: Sequence, priority: int) -> None:
        """Gives a sequence another priority."""
        sequence.priority = priority
        self._sort()

    def remove(self, sequence: Sequence) -> None:
        """Lets a sequence go and frees its blocks."""
        self._sequences.remove(sequence)
        self._evict(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Frees the blocks of a sequence that cannot be computed, and what they were known by. It has to be removed."""
        for block in reversed(sequence.block_table):
            self.pool.release(block, forget=not self.pool.is_shared(block))
        sequence.block_table.clear()
        sequence.num_computed = sequence.num_registered = 0

    def seconds_until_runnable(self, now: float) -> float | None:
        """0 when a step would compute something now, else seconds until one would, or None while nothing is to do."""
        hold = min((s.hold_until for s in self._sequences if s.num_uncomputed), default=math.inf)
        return None if hold == math.inf else max(0.0, hold - now)

    def schedule(self, now: float) -> Schedule:
        """What the next step computes; blocks for it are allocated."""
        budget = self.max_step_tokens
        works: list[Work] = []
        copies: list[tuple[int, int]] = []
        has_others = any(not sequence.is_background for sequence in self._sequences)
        for sequence in tuple(self._sequences):
            if has_others and sequence.is_background:
                has_others = False  # They yield once, all together.
                budget = min(budget, self._spare_rows(self.max_step_tokens - budget))
            if budget == 0:
                break
            if not sequence.num_uncomputed or sequence.hold_until > now:
                continue
            self._settle(sequence)
            if not sequence.block_table:
                holding = sum(1 for s in self._sequences if s.block_table)
                if holding >= self.max_sequences and not self._preempt_after(sequence):
                    break
                self._reuse_prefix(sequence)
            count = min(sequence.num_uncomputed, budget)
            end = sequence.num_computed + count
            if not self._make_room(sequence, end) or not self._own_blocks(sequence, end, copies):
                break
            works.append(Work(sequence, sequence.num_computed, count))
            budget -= count
        return Schedule(works, copies)

    def computed(self, works: abc.Iterable[Work]) -> None:
        """Records that a step computed these tokens."""
        for sequence, start, count in works:
            sequence.num_computed = start + count

    def _settle(self, sequence: Sequence) -> None:
        """Frees blocks past the sequence's end and makes its full, settled blocks known for reuse."""
        size = self.block_size
        needed = -(-len(sequence) // size)
        while len(sequence.block_table) > needed:
            self.pool.release(sequence.block_table.pop())
        full = min(sequence.num_computed, sequence.num_settled) // size
        while sequence.num_registered < full:
            index = sequence.num_registered
            digest = sequence.digest_of_block(index, size)
            self.pool.register(sequence.block_table[index], digest)
            if label := sequence.roots.label_of(index):
                self.registered.append(Registered(label, digest))
            sequence.num_registered += 1

    def adapter_uses(self) -> abc.Mapping[tuple[int, str], int]:
        """Sequences by the adapter slot that they use and by what they do: "running" with blocks, else "waiting"."""
        return Counter(
            (sequence.adapter_slot, "running" if sequence.block_table else "waiting")
            for sequence in self._sequences
            if sequence.adapter_slot != NO_SLOT
        )

    def check_integrity(self) -> None:
        """Raises RuntimeError when the blocks in tables and the pool's references disagree."""
        self.pool.check_integrity()
        in_tables = {block for s in self._sequences for block in s.block_table}
        if len(in_tables) != self.pool.num_used:
            raise RuntimeError(f"{self.pool.num_used} blocks are used, {len(in_tables)} lie in block tables")

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Fills an empty table with known blocks; at least one token stays to be computed."""
        usable = min(sequence.first_logits, sequence.num_settled - 1) // self.block_size
        for index in range(usable):
            block = self.pool.take(sequence.digest_of_block(index, self.block_size))
            if block is None:
                break
            sequence.block_table.append(block)
        sequence.num_registered = len(sequence.block_table)
        sequence.num_computed = sequence.num_registered * self.block_size
        if sequence.is_new:
            sequence.is_new = False
            sequence.num_cached = min(sequence.num_computed, sequence.num_prompt_tokens)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocates blocks up to `num_tokens`, preempting sequences that come later in the order."""
        while len(sequence.block_table) * self.block_size < num_tokens:
            block = self.pool.allocate(after=sequence.block_table[-1] if sequence.block_table else NULL_BLOCK)
            if block is not None:
                sequence.block_table.append(block)
            elif not self._preempt_after(sequence):
                return False
        return True

    def _own_blocks(self, sequence: Sequence, end: int, copies: list[tuple[int, int]]) -> bool:
        """Copies the blocks that tokens up to `end` go into where others have them too. False when none are left."""
        for index in range(sequence.num_computed // self.block_size, -(-end // self.block_size)):
            shared = sequence.block_table[index]
            if not self.pool.is_shared(shared):
                continue
            while (block := self.pool.allocate()) is None:
                if not self._preempt_after(sequence):
                    return False
            self.pool.release(shared)
            sequence.block_table[index] = block
            copies.append((shared, block))
        return True

    def _sort(self) -> None:
        self._sequences.sort(key=lambda s: (-s.priority, s.arrival))

    def _preempt_after(self, sequence: Sequence) -> bool:
        """Evicts the last sequence that comes after this one in the order; False when there is none."""
        for other in reversed(self._sequences):
            if other is sequence:
                return False
            if other.block_table:
                self.num_preemptions += 1
                self._evict(other)
                return True
        return False

    def _evict(self, sequence: Sequence) -> None:
        self._settle(sequence)
        for block in reversed(sequence.block_table):
            self.pool.release(block)
        sequence.block_table.clear()
        sequence.num_computed = 0
        sequence.num_registered = 0
