"""Which tokens of a row can be picked at all, when what is known of some of them is known: few of a vocabulary.

A token is picked when its score / temperature and its noise (`services.engine.noise`) come to most. Noise is
-log(-log u) of a uniform u made of the token's hash, and -log u is at least 1 - u: so a token that is to come to more
than a bound has 1 - u < exp(score / temperature - bound). To see that takes a hash and a rough exponential, in one pass
and without the two logarithms of every token. Noise itself is computed of those that are left, where it always is.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numba.np.numpy_support import carray

from services.common.seeds import GOLDEN, MIX_1, MIX_2
from services.engine.cpu import parallel
from services.engine.cpu.kernels import FAST, Floats, Ints, fast_exp

CHUNK, MOST = 1 << 15, 256
"""Tokens that a thread looks at at once, and most of them that it names."""
_BLOCK = 256
_MARGIN = np.float32(1.001)
"""More than is lost by single precision."""
_UNIT = np.float32(2.0**-52)
_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(value) for value in (GOLDEN, MIX_1, MIX_2))
_LOW = np.uint64((1 << 52) - 1)
_30, _27, _31, _12 = (np.uint64(bits) for bits in (30, 27, 31, 12))
_pointer: Any = parallel.pointer
ARGUMENTS = np.dtype(
    [(name, np.int64) for name in ("rows", "vocab", "chunks", "units")]
    + [(name, np.intp) for name in ("scores", "states", "numbers", "columns", "counts")],
    align=True,
)
"""`look` takes these. scores [rows, vocab]; states [rows]; numbers [rows, 3]: the highest score, 1 / temperature, and
the bound less the highest score / temperature; columns [rows, chunks, MOST]; counts [rows, chunks]."""


@njit(inline="always", fastmath=FAST)
def _is_one(score: np.float32, number: int, state: np.uint64, limits: Floats) -> bool:
    z = state + np.uint64(number + 1) * _GOLDEN
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    z = z ^ (z >> _31)
    rest = np.float32(np.int64((~z >> _12) & _LOW)) * _UNIT
    return bool(rest <= fast_exp((score - limits[0]) * limits[1] - limits[2]) * _MARGIN)


@njit(nogil=True, fastmath=FAST)
def find(scores: Floats, state: np.uint64, limits: Floats, first: int, end: int, columns: Ints) -> int:
    """Writes the numbers of the tokens in [first, end) that may come to the bound, and returns how many there are."""
    found = 0
    for start in range(first, end, _BLOCK):
        until = min(start + _BLOCK, end)
        some = 0
        for number in range(start, until):
            some += _is_one(scores[number], number, state, limits)
        if some:
            for number in range(start, until):
                if _is_one(scores[number], number, state, limits):
                    if found < columns.shape[0]:
                        columns[found] = number
                    found += 1
    return found


@parallel.kernel(fastmath=FAST)
def look(address: Any) -> None:
    """Looks at this thread's chunks."""
    a = carray(address, (1,), ARGUMENTS)[0]
    scores = carray(_pointer(a.scores), (a.rows, a.vocab), np.float32)
    states = carray(_pointer(a.states), (a.rows,), np.uint64)
    numbers = carray(_pointer(a.numbers), (a.rows, 3), np.float32)
    columns = carray(_pointer(a.columns), (a.rows, a.chunks, MOST), np.int64)
    counts = carray(_pointer(a.counts), (a.rows, a.chunks), np.int64)
    for unit in range(parallel.thread_number(), a.units, parallel.number_of_threads()):
        row, chunk = unit // a.chunks, unit % a.chunks
        first, end = chunk * CHUNK, min((chunk + 1) * CHUNK, a.vocab)
        counts[row, chunk] = find(scores[row], states[row], numbers[row], first, end, columns[row, chunk])


def challengers(
    scores: torch.Tensor, temperatures: torch.Tensor, states: torch.Tensor, bounds: torch.Tensor, best: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [rows, some] of scores [rows, vocab] that come to the row's bound and others, and whether all that do.

    scores in float32; temperatures [rows, 1] and bounds [rows] in float64; states [rows] as those of the
    noise; `best` [rows] are the columns of the highest scores, which fill up what is left over.
    """
    scores, states = scores.contiguous(), states.contiguous()
    rows, vocab = scores.shape
    chunks = -(-vocab // CHUNK)
    highest = scores.gather(1, best[:, None]).double()
    limits = torch.cat((highest, 1 / temperatures, bounds[:, None] - highest / temperatures), 1).float().contiguous()
    columns = best[:, None].expand(rows, chunks * MOST).contiguous()
    counts = torch.zeros((rows, chunks), dtype=torch.int64)
    arguments = np.array(
        (
            rows, vocab, chunks, rows * chunks,
            *(each.data_ptr() for each in (scores, states, limits, columns, counts)),
        ),
        ARGUMENTS,
    )  # fmt: skip
    parallel.run(look, arguments.ctypes.data, min(torch.get_num_threads(), rows * chunks))
    most = int(counts.max())
    named = columns.view(rows, chunks, MOST)[:, :, : max(1, min(most, MOST))].flatten(1)
    return named, (counts <= MOST).all(1)
