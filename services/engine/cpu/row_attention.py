"""Attention of single rows over KV blocks where they lie, compiled.

Keys and values of 16 tokens lie as the products want them: keys as [kv_heads, dim, 16 tokens], values as
[kv_heads, dim / 16, 16 tokens, 16]. A score is then made without any sum across a vector. Every row is computed by
itself, in an order of additions that its position alone decides: its bits depend on nothing else in the step.
"""

from typing import Any

import numpy as np
from numba import njit
from numba.np.numpy_support import carray

from services.engine.cpu import parallel
from services.engine.cpu.instructions import rows_times_blocks
from services.engine.cpu.kernels import Flags, Floats, Ints
from services.engine.cpu.kinds import HAS_32_REGISTERS, Kind
from services.engine.cpu.llvm import LANES
from services.engine.cpu.softmax import weigh

_ONE = np.float32(1.0)
_NOTHING = np.float32(-np.inf)
_TILE = 8
"""Rows of one sequence, or heads that share keys, that are computed together."""
_CHUNK = 128
"""Tokens between two looks at the highest score. Chunks begin at multiples of it."""
_pointer: Any = parallel.pointer


def _together(*, adds: bool) -> Any:
    """A function for up to _TILE rows: sums [rows, 16] (+)= x [rows, units] @ block [units, 16], all addresses.

    A row's sums are made in one order for any number of rows.
    """
    one, two, four, eight = (
        rows_times_blocks(Kind.FLOAT32, rows, 1, ahead=False, adds=adds) for rows in (1, 2, 4, 8)
    )  # fmt: skip

    @njit(nogil=True)
    def multiply(rows: int, block: int, units: int, x: int, stride: int, sums: int, sums_stride: int) -> None:
        if rows & 8 and HAS_32_REGISTERS:
            eight(block, units, x, stride, sums, sums_stride)
        elif rows & 8:
            four(block, units, x, stride, sums, sums_stride)
            four(block, units, x + 4 * stride, stride, sums + 4 * sums_stride, sums_stride)
        if rows & 4:
            four(block, units, x, stride, sums, sums_stride)
            x, sums = x + 4 * stride, sums + 4 * sums_stride
        if rows & 2:
            two(block, units, x, stride, sums, sums_stride)
            x, sums = x + 2 * stride, sums + 2 * sums_stride
        if rows & 1:
            one(block, units, x, stride, sums, sums_stride)

    return multiply


_score, _add = _together(adds=False), _together(adds=True)


@njit(nogil=True)
def _attend_together(
    count: int, query: int, stride: int, kv_head: int, heads_in_all: int, dim: int, table: Ints, block_size: int,
    ends: Ints, window: int, keys: int, values: int, scaling: np.float32, out: int, scores: Floats, states: Floats,
) -> None:  # fmt: skip
    """`count` queries with their own ends, over the same keys: query and out are addresses, `stride` bytes apart."""
    states[:, 0], states[:, 1] = _NOTHING, np.float32(0.0)
    results = carray(_pointer(out), (count, stride // 4), np.float32)
    results[:, :dim] = np.float32(0.0)
    most, least = ends[count - 1], max(0, ends[0] - window)
    row_bytes, head_bytes = 4 * heads_in_all * dim, 4 * kv_head * dim * LANES
    for chunk in range(least // _CHUNK * _CHUNK, most, _CHUNK):
        last = min(chunk + _CHUNK, most)
        room = (last - chunk + LANES - 1) // LANES * LANES
        for first in range(chunk, last, LANES):
            slot = table[first // block_size] * block_size + first % block_size
            here = scores.ctypes.data + 4 * (first - chunk)
            _score(count, keys + slot * row_bytes + head_bytes, dim, query, stride, here, 4 * _CHUNK)
        for row in range(count):
            start, end = max(chunk, ends[row] - window), min(last, ends[row])
            if start >= end:
                scores[row] = np.float32(0.0)
                continue
            weigh(
                scores.ctypes.data + 4 * row * _CHUNK, room, scaling, start - chunk, end - chunk,
                states.ctypes.data + 4 * row * states.shape[1],
            )  # fmt: skip
            if states[row, 2] != _ONE:
                for i in range(dim):
                    results[row, i] *= states[row, 2]
        for first in range(chunk, last, LANES):
            slot = table[first // block_size] * block_size + first % block_size
            here = scores.ctypes.data + 4 * (first - chunk)
            for part in range(0, dim, LANES):
                block = values + slot * row_bytes + head_bytes + 4 * part * LANES
                # Tokens past the last one are not this sequence's.
                _add(count, block, min(LANES, last - first), here, 4 * _CHUNK, out + 4 * part, stride)
    for row in range(count):
        scale = _ONE / states[row, 1]
        for i in range(dim):
            results[row, i] *= scale


@njit(nogil=True)
def attend(
    queries: Floats, share: int, shares: int, tables: Ints, owners: Ints, positions: Ints, broken: Flags,
    block_size: int, kv_heads: int, keys: int, values: int, scaling: np.float32, window: int, out: Floats,
) -> None:  # fmt: skip
    """One of so many shares of the attention of all rows and heads.

    queries and out [rows, heads, dim]; tables [sequences, blocks]; owners and positions [rows]; keys and values are
    addresses. A row sees the last `window` tokens up to its own. Rows of one sequence, or else heads that share keys,
    are computed up to _TILE at a time, so that keys are read once for all of them; none before a `broken` row, whose
    keys or values are not finite, is together with it: what is masked would be no number for it either. Of every tile
    of rows each share has a run of heads; where the runs are not equal, it has the next one of the next tile.
    """
    num_rows, heads, dim = queries.shape
    group = heads // kv_heads
    scores, states = np.empty((_TILE, _CHUNK), np.float32), np.empty((_TILE, 3), np.float32)
    ends = np.empty(_TILE, np.int64)
    unit = group if num_rows >= shares else 1  # Heads that share keys stay together, unless that leaves threads idle.
    row, turn = 0, share
    while row < num_rows:
        owner, rows = owners[row], 1
        while rows < _TILE and row + rows < num_rows and owners[row + rows] == owner and not broken[row + rows]:
            rows += 1
        ends[:rows] = positions[row : row + rows] + 1
        if rows == 1:
            ends[:] = ends[0]
        step, stride = (1, 4 * heads * dim) if rows > 1 else (_TILE, 4 * dim)
        size = 1 if rows > 1 else unit
        head, last = heads // size * turn // shares * size, heads // size * (turn + 1) // shares * size
        while head < last:
            kv_head = head // group
            next_head = min(head + step, last, (kv_head + 1) * group)
            at = 4 * (row * heads + head) * dim
            _attend_together(
                max(rows, next_head - head), queries.ctypes.data + at, stride, kv_head, kv_heads, dim, tables[owner],
                block_size, ends, window, keys, values, scaling, out.ctypes.data + at, scores, states,
            )  # fmt: skip
            head = next_head
        row += rows
        if heads // size % shares:  # Otherwise a share keeps its heads, whose keys are near.
            turn = (turn + 1) % shares
