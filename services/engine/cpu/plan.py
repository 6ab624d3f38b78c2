"""Where the rows of one step of a fused forward write their KV, and which keys they see."""

from collections import abc

import numpy as np

from services.engine.cpu.kernels import Ints
from services.engine.kv_cache import NULL_SLOT, KVCache
from services.engine.scheduler import Work


class RowPlan:
    """Flat rows of several sequences; rows past the last token are padding, whose KV goes to the null block."""

    def __init__(self, works: abc.Sequence[Work], num_rows: int, kv_cache: KVCache) -> None:
        self.num_present = sum(work.num_tokens for work in works)
        longest = max(len(work.sequence.block_table) for work in works)
        self.tables: Ints = np.zeros((len(works), longest), np.int64)
        """Block tables [sequences, blocks]."""
        self.owners: Ints = np.zeros(num_rows, np.int64)
        """Which of the sequences a row belongs to, [rows]."""
        self.positions: Ints = np.zeros(num_rows, np.int64)
        """Index of the row's token in its sequence, [rows]."""
        self.slots: Ints = np.full(num_rows, NULL_SLOT, np.int64)
        """Where the row writes its KV, [rows]."""
        size = kv_cache.block_size
        row = 0
        for owner, (sequence, start, count) in enumerate(works):
            end = row + count
            table = self.tables[owner]
            table[: len(sequence.block_table)] = sequence.block_table
            positions = np.arange(start, start + count)
            self.owners[row:end], self.positions[row:end] = owner, positions
            self.slots[row:end] = table[positions // size] * size + positions % size
            row = end
