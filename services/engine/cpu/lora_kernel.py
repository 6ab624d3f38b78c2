"""What adapters add to the rows of a product on the CPU, compiled, on all threads.

Every row is computed by itself, in an order of additions that its adapter alone decides: its bits depend on nothing
else in the step. Rows of one adapter go through its matrices together, so that these are read once for up to _TILE of
them; cost grows with the rows that have an adapter, not with the adapters there are.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.core.errors import NumbaTypeError
from numba.extending import overload
from numba.np.numpy_support import carray

from services.engine.cpu import parallel
from services.engine.cpu.kernels import FAST, Floats, Ints

MAX_PARTS = 3
PART_FIELDS = 5
"""A part has so many fields in the table of segments: rank (0: the adapter does not change it), the addresses of
A [rank, in] and B transposed [rank, out], its first output, and how many it has."""
_TILE = 8
_CHUNK = 512
_ZERO = np.float32(0.0)
_pointer: Any = parallel.pointer


def _widen(weight: Any) -> Any:
    """A weight as float32: float32 as it is, and bfloat16 from its 16 bits."""
    raise NotImplementedError


@overload(_widen, inline="always", strict=False)
def _widen_for(weight: Any) -> Any:
    if isinstance(weight, types.Float):
        return lambda weight: weight
    if isinstance(weight, types.Integer):
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    raise NumbaTypeError(f"no weight: {weight}")


@njit(nogil=True, fastmath=FAST)
def add_tile(
    x: Floats, y: Floats, rows: Ints, down: Any, up: Any, first: int, scaling: np.float32, hidden: Floats
) -> None:
    """y[rows, first : first + out] += scaling * (x[rows] @ down.T) @ up.

    x [rows, in]; y [rows, outputs]; down [rank, in] and up [rank, out] in float32 or bfloat16 bits; hidden is room for
    [rows, rank].
    """
    rank, width = down.shape
    for at in range(rows.shape[0]):
        line = x[rows[at]]
        j = 0
        while j + 4 <= rank:
            a, b, c, d = down[j], down[j + 1], down[j + 2], down[j + 3]
            s, t, u, v = _ZERO, _ZERO, _ZERO, _ZERO
            for i in range(width):
                s += _widen(a[i]) * line[i]
                t += _widen(b[i]) * line[i]
                u += _widen(c[i]) * line[i]
                v += _widen(d[i]) * line[i]
            hidden[at, j], hidden[at, j + 1] = s * scaling, t * scaling
            hidden[at, j + 2], hidden[at, j + 3] = u * scaling, v * scaling
            j += 4
        while j < rank:
            a, s = down[j], _ZERO
            for i in range(width):
                s += _widen(a[i]) * line[i]
            hidden[at, j] = s * scaling
            j += 1
    for start in range(0, up.shape[1], _CHUNK):  # So much of `up` stays in the nearest cache for all rows.
        size = min(_CHUNK, up.shape[1] - start)
        for at in range(rows.shape[0]):
            out = y[rows[at], first + start : first + start + size]
            j = 0
            while j + 4 <= rank:  # Four at a time: the sum is read and written a quarter as often.
                s, t, u, v = hidden[at, j], hidden[at, j + 1], hidden[at, j + 2], hidden[at, j + 3]
                a, b = up[j, start : start + size], up[j + 1, start : start + size]
                c, d = up[j + 2, start : start + size], up[j + 3, start : start + size]
                for i in range(size):
                    out[i] += s * _widen(a[i]) + t * _widen(b[i]) + u * _widen(c[i]) + v * _widen(d[i])
                j += 4
            while j < rank:
                s, a = hidden[at, j], up[j, start : start + size]
                for i in range(size):
                    out[i] += s * _widen(a[i])
                j += 1


ARGUMENTS = np.dtype(
    [(name, np.int64) for name in ("rows", "selected", "in_features", "out_features", "slots", "products", "product")]
    + [(name, np.int64) for name in ("max_rank", "half", "shares")]
    + [(name, np.intp) for name in ("x", "y", "row_numbers", "row_slots", "segments", "scalings")],
    align=True,
)
"""`add_shares` takes these sizes, numbers and addresses. row_numbers and row_slots [selected]; segments [slots,
products, MAX_PARTS, PART_FIELDS]; scalings [slots]; half says that weights are bfloat16."""


@parallel.kernel(fastmath=FAST)
def add_shares(address: Any) -> None:
    """Adds to this thread's shares of the selected rows."""
    a = carray(address, (1,), ARGUMENTS)[0]
    x = carray(_pointer(a.x), (a.rows, a.in_features), np.float32)
    y = carray(_pointer(a.y), (a.rows, a.out_features), np.float32)
    numbers = carray(_pointer(a.row_numbers), (a.selected,), np.int64)
    slots = carray(_pointer(a.row_slots), (a.selected,), np.int64)
    segments = carray(_pointer(a.segments), (a.slots, a.products, MAX_PARTS, PART_FIELDS), np.int64)
    scalings = carray(_pointer(a.scalings), (a.slots,), np.float32)
    hidden = np.empty((_TILE, a.max_rank), np.float32)
    for share in range(parallel.thread_number(), a.shares, parallel.number_of_threads()):
        at, last = a.selected * share // a.shares, a.selected * (share + 1) // a.shares
        while at < last:
            slot, end = slots[at], at + 1
            while end < min(last, at + _TILE) and slots[end] == slot:
                end += 1
            rows = numbers[at:end]
            for part in range(MAX_PARTS):
                rank, down, up, first, count = segments[slot, a.product, part]
                if rank == 0:
                    continue
                if a.half:
                    add_tile(
                        x, y, rows, carray(_pointer(down), (rank, a.in_features), np.uint16),
                        carray(_pointer(up), (rank, count), np.uint16), first, scalings[slot], hidden,
                    )  # fmt: skip
                else:
                    add_tile(
                        x, y, rows, carray(_pointer(down), (rank, a.in_features), np.float32),
                        carray(_pointer(up), (rank, count), np.float32), first, scalings[slot], hidden,
                    )  # fmt: skip
            at = end
