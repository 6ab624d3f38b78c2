"""Attention of single rows over KV blocks where they lie, compiled, on all threads.

Every row is computed by itself, in an order of additions that its position alone
decides: its bits depend on nothing else in the step.
"""

from typing import Any

import numpy as np
import torch
from numba import cfunc, njit
from numba.np.numpy_support import carray

from services.engine.cpu import parallel
from services.engine.cpu.kernels import FAST, Floats, Ints
from services.engine.cpu.plan import RowPlan
from services.engine.kv_cache import KVCache

_ONE = np.float32(1.0)
_TILE = 8
_EVERYTHING = 1 << 40
_pointer: Any = parallel.pointer
_MIN_SHARE = 1_000
"""Queries times keys that are worth a thread: some twenty microseconds."""


@njit(inline="always", fastmath=FAST)
def fast_exp(x: np.float32) -> np.float32:
    """exp(x) for x <= 0 to about one unit in the last place; vectorises where the C library's would be called.

    Reduction and polynomial are those of `expf` in Cephes (Moshier).
    """
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    result: np.float32 = (p * r * r + r + _ONE) * power
    return result


@njit(nogil=True, cache=True, fastmath=FAST)
def attend(  # noqa: PLR0912 - one loop nest
    queries: Floats,
    num_rows: int,
    first_head: int,
    last_head: int,
    tables: Ints,
    owners: Ints,
    positions: Ints,
    block_size: int,
    keys: Floats,
    values: Floats,
    scaling: np.float32,
    window: int,
    out: Floats,
) -> None:
    """Attention of heads [first_head, last_head) over KV blocks where they lie, a block at a time.

    The softmax keeps a running maximum (Milakov and Gimelshein, arXiv 1805.02867).

    queries and out [rows, heads, dim]; tables [sequences, blocks]; owners and positions [rows]; keys and values
    [slots, kv_heads, dim]. A row sees the last `window` tokens up to its own. Rows of one sequence go through the
    blocks together, so that a block is read once for up to _TILE of them.
    """
    dim, heads = queries.shape[2], queries.shape[1]
    group = heads // keys.shape[1]
    highest = np.empty((_TILE, heads), np.float32)
    total = np.empty((_TILE, heads), np.float32)
    weights = np.empty(block_size, np.float32)
    row = 0
    while row < num_rows:
        owner, count = owners[row], 1
        while count < _TILE and row + count < num_rows and owners[row + count] == owner:
            count += 1
        highest[:] = np.float32(-np.inf)
        total[:] = np.float32(0.0)
        out[row : row + count, first_head:last_head] = np.float32(0.0)
        for block in range(
            max(0, positions[row] + 1 - window) // block_size, positions[row + count - 1] // block_size + 1
        ):
            slot = tables[owner, block] * block_size
            for line in range(count):
                end = positions[row + line] + 1 - block * block_size
                start = max(0, end - window)
                end = min(end, block_size)
                if start >= end:
                    continue
                for head in range(first_head, last_head):
                    kv_head = head // group
                    before = highest[line, head]
                    high = before
                    for j in range(start, end):
                        score = np.float32(0.0)
                        for i in range(dim):
                            score += queries[row + line, head, i] * keys[slot + j, kv_head, i]
                        weights[j] = score * scaling
                        high = max(high, weights[j])
                    if high > before:
                        highest[line, head] = high
                        shrink = fast_exp(before - high)
                        total[line, head] *= shrink
                        for i in range(dim):
                            out[row + line, head, i] *= shrink
                    added = np.float32(0.0)
                    for j in range(start, end):
                        weights[j] = fast_exp(weights[j] - high)
                        added += weights[j]
                    total[line, head] += added
                    j = start
                    while j + 4 <= end:  # Four at a time: the sum is read and written a quarter as often.
                        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
                        at = slot + j
                        for i in range(dim):
                            out[row + line, head, i] += (
                                a * values[at, kv_head, i]
                                + b * values[at + 1, kv_head, i]
                                + c * values[at + 2, kv_head, i]
                                + d * values[at + 3, kv_head, i]
                            )
                        j += 4
                    while j < end:
                        for i in range(dim):
                            out[row + line, head, i] += weights[j] * values[slot + j, kv_head, i]
                        j += 1
        for line in range(count):
            for head in range(first_head, last_head):
                scale = _ONE / total[line, head]
                for i in range(dim):
                    out[row + line, head, i] *= scale
        row += count


_Arguments = np.dtype(
    [(name, np.int64) for name in ("rows", "present", "heads", "kv_heads", "dim", "slots", "sequences", "blocks")]
    + [(name, np.int64) for name in ("shares", "block_size", "window")]
    + [(name, np.intp) for name in ("queries", "out", "keys", "values", "tables", "owners", "positions")]
    + [("scaling", np.float32)],
    align=True,
)
"""`_attend_shares` takes these sizes, addresses and numbers, named as `attend` names them."""


@cfunc(parallel.kernel_signature, cache=True, fastmath=FAST)
def _attend_shares(address: Any) -> None:
    """`attend` for this thread's shares of the heads."""
    a = carray(address, (1,), _Arguments)[0]
    queries = carray(_pointer(a.queries), (a.rows, a.heads, a.dim), np.float32)
    out = carray(_pointer(a.out), (a.rows, a.heads, a.dim), np.float32)
    keys = carray(_pointer(a.keys), (a.slots, a.kv_heads, a.dim), np.float32)
    values = carray(_pointer(a.values), (a.slots, a.kv_heads, a.dim), np.float32)
    tables = carray(_pointer(a.tables), (a.sequences, a.blocks), np.int64)
    owners = carray(_pointer(a.owners), (a.rows,), np.int64)
    positions = carray(_pointer(a.positions), (a.rows,), np.int64)
    for share in range(parallel.thread_number(), a.shares, parallel.number_of_threads()):
        first, last = a.heads * share // a.shares, a.heads * (share + 1) // a.shares
        attend(
            queries, a.present, first, last, tables, owners, positions, a.block_size, keys, values, a.scaling, a.window,
            out,
        )  # fmt: skip


_kernel = parallel.as_kernel(_attend_shares)


class RowAttention:
    """The attention of one step: queries in, attended values out, layer by layer in the same memory."""

    def __init__(self, plan: RowPlan, kv_cache: KVCache, num_heads: int) -> None:
        self._kv_cache = kv_cache
        self._plan = plan  # The kernel reads its arrays.
        slots, kv_heads, dim = kv_cache.keys[0].shape
        rows = len(plan.positions)
        self._queries = torch.empty(rows, num_heads, dim)
        self._out = torch.zeros(rows, num_heads, dim)
        self.queries: Floats = self._queries.numpy()
        """Room for the queries, [rows, heads, dim]."""
        queries_times_keys = (int(plan.positions[: plan.num_present].sum()) + plan.num_present) * num_heads
        self._shares = max(1, min(torch.get_num_threads(), num_heads, queries_times_keys // _MIN_SHARE))
        self._arguments = np.zeros((), _Arguments)
        sizes = {
            "rows": rows, "present": plan.num_present, "heads": num_heads, "kv_heads": kv_heads, "dim": dim,
            "slots": slots, "sequences": plan.tables.shape[0], "blocks": plan.tables.shape[1], "shares": self._shares,
            "block_size": kv_cache.block_size,
        }  # fmt: skip
        addresses = {
            "queries": self._queries.data_ptr(), "out": self._out.data_ptr(), "tables": plan.tables.ctypes.data,
            "owners": plan.owners.ctypes.data, "positions": plan.positions.ctypes.data,
        }  # fmt: skip
        for name, value in (sizes | addresses).items():
            self._arguments[name] = value

    def run(self, layer: int, scaling: float, window: int | None) -> torch.Tensor:
        """Attends with the queries, once the step's keys and values are stored. Returns [rows, heads * dim]; 0 for
        padding.
        """
        arguments = self._arguments
        arguments["keys"] = self._kv_cache.keys[layer].data_ptr()
        arguments["values"] = self._kv_cache.values[layer].data_ptr()
        arguments["scaling"] = scaling
        arguments["window"] = window or _EVERYTHING
        parallel.run(_kernel, arguments.ctypes.data, self._shares)
        return self._out.flatten(1)
