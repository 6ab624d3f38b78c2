"""All layers of a decoder step as one compiled function that every thread runs from end to end.

A layer's work is cut into phases, between which threads wait for each other: products are shared by outputs, the rest
by rows or heads. At a few rows a step is then nothing but reading weights; nothing is dispatched, padded or copied.
Every row is computed by itself, in an order that its position alone decides: its bits depend on nothing else.
"""

from typing import Any

import numpy as np
from numba import njit
from numba.np.numpy_support import carray

from services.engine.cpu import parallel
from services.engine.cpu.instructions import load_tiles, release_tiles
from services.engine.cpu.kernels import FAST, Flags, Floats, Ints, activate, rms_norm, rotate_and_store
from services.engine.cpu.llvm import LANES
from services.engine.cpu.packed import OUTPUTS_AT_ONCE
from services.engine.cpu.product import ROOM_BYTES, is_finite, multiply, to_units
from services.engine.cpu.row_attention import attend

PHASES = 10
"""A layer has so many phases; two more follow the last layer: its norm, and the output product."""
PRODUCT_PHASES = (1, 5, 7, 9)
"""The layer's products: queries, keys and values; attention's output; gate and up; down."""
PRODUCTS = len(PRODUCT_PHASES)
CLAIM_BYTES = 64
"""How many parts of a share of a product are claimed is counted in a cache line of its own."""
_PARTS = 8
"""A share has so many parts: the larger they are, the longer the last one is waited for; each is read as one stretch of
memory.
"""
_CLAIMED_FROM = 4
"""A thread claims of its own share and of so many less one: asking all of many threads takes longer than it saves."""
_NORM, _QUERY_KEY_VALUE, _ROTATE, _ATTEND, _TAKE_ATTENDED, _OUT, _MLP_NORM, _GATE_UP, _ACTIVATE, _DOWN = range(PHASES)
_pointer: Any = parallel.pointer

LAYER = np.dtype(
    [(name, np.intp) for name in ("input_norm", "mlp_norm", "query_norm", "key_norm", "keys", "values")]
    + [("window", np.int64), ("scaling", np.float32)],
    align=True,
)
"""Addresses, 0 where there is none, how many tokens a row sees, and what scores are multiplied by."""
PRODUCT = np.dtype(
    [(name, np.intp) for name in ("weights", "scales", "offsets", "bias")]
    + [(name, np.int64) for name in ("units", "row_bytes", "outputs")],
    align=True,
)
"""Of a packed weight: addresses, 0 where there is none, units of a row and its bytes as `to_units` writes it."""
ARGUMENTS = np.dtype(
    [(name, np.int64) for name in ("kind", "first", "last", "layers", "rows", "wanted_rows", "width", "inner", "vocab")]
    + [(name, np.int64) for name in ("heads", "kv_heads", "dim", "rotated", "angles", "slots_in_all", "bell", "shares")]
    + [(name, np.int64) for name in ("sequences", "blocks", "block_size", "half_embedding", "in_tiles")]
    + [(name, np.intp) for name in ("layer_table", "product_table", "final_norm", "embedding", "tiles")]
    + [(name, np.intp) for name in ("token_ids", "positions", "slots", "owners", "tables", "wanted", "cos", "sin")]
    + [(name, np.intp) for name in ("hurry", "given_up", "claimed")]
    + [(name, np.intp) for name in ("hidden", "normed", "joint", "queries", "attended", "gates", "active", "delta")]
    + [(name, np.intp) for name in ("units", "row_scales", "broken", "room", "logits")]
    + [("eps", np.float32)],
    align=True,
)
"""`run_phases` takes these sizes, addresses and numbers: phases [first, last) are run."""


@njit(nogil=True, fastmath=FAST)
def _embed(a: Any, hidden: Floats, first: int, last: int) -> None:
    tokens = carray(_pointer(a.token_ids), (a.rows,), np.int64)
    for row in range(first, last):
        if a.half_embedding:
            halves = carray(_pointer(a.embedding + tokens[row] * a.width * 2), (a.width,), np.uint16)
            bits = hidden[row].view(np.uint32)
            for i in range(a.width):
                bits[i] = np.uint32(halves[i]) << np.uint32(16)
        else:
            floats = carray(_pointer(a.embedding + tokens[row] * a.width * 4), (a.width,), np.float32)
            hidden[row] = floats


@njit(nogil=True)
def _floats(address: int, rows: int, width: int) -> Floats:
    return carray(_pointer(address), (rows, width), np.float32)


@njit(nogil=True)
def _row_numbers(a: Any, address: int) -> Ints:
    return carray(_pointer(address), (a.rows,), np.int64)


@njit(nogil=True)
def _vector(address: int, width: int) -> Floats:
    """No elements where there is no address."""
    return carray(_pointer(address), (width if address else 0,), np.float32)


@njit(nogil=True)
def _product(a: Any, index: int, y: Floats, thread: int, threads: int) -> None:
    """A product of the rows that lie in units: a thread claims parts of its own share of the outputs, then of others'.

    With nothing but its own, all would wait for the one whose core somebody else takes for a moment.
    """
    product = carray(_pointer(a.product_table), (PRODUCTS * a.layers + 1,), PRODUCT)[index]
    groups = (product.outputs + OUTPUTS_AT_ONCE - 1) // OUTPUTS_AT_ONCE
    filled = groups * OUTPUTS_AT_ONCE
    offsets = carray(_pointer(product.offsets), (filled if product.offsets else 0,), np.int32)
    rows_scales, scales = _vector(a.row_scales, y.shape[0]), _vector(product.scales, filled)
    bias = _vector(product.bias, product.outputs)
    for other in range(min(threads, _CLAIMED_FROM)):
        whose = (thread + other) % threads
        first, last = groups * whose // threads, groups * (whose + 1) // threads
        parts = min(last - first, _PARTS) if threads > 1 else 1
        claimed = a.claimed + (index * a.shares + whose) * CLAIM_BYTES
        part = parallel.claim(claimed)
        while part < parts:
            multiply(
                a.kind, product.weights, product.units, product.outputs, first + (last - first) * part // parts,
                first + (last - first) * (part + 1) // parts, a.units, product.row_bytes, rows_scales, scales,
                offsets, bias, a.room + thread * ROOM_BYTES, y,
            )  # fmt: skip
            part = parallel.claim(claimed)


@njit(nogil=True)
def _take(a: Any, index: int, row: int, x: Floats) -> None:
    """Makes x [in] the row that a product multiplies."""
    product = carray(_pointer(a.product_table), (PRODUCTS * a.layers + 1,), PRODUCT)[index]
    scale = to_units(a.kind, x, product.units, a.units + row * product.row_bytes)
    _vector(a.row_scales, row + 1)[row] = scale


@njit(nogil=True)
def _norm(a: Any, index: int, row: int, from_row: int, weight: int, add: bool) -> None:
    """Adds the product before to a row of hidden, and makes it normed the row that a product multiplies."""
    hidden, normed = _floats(a.hidden, a.rows, a.width), _floats(a.normed, a.rows, a.width)
    if add:
        delta = _floats(a.delta, a.rows, a.width)
        hidden[from_row] += delta[from_row]
    rms_norm(hidden[from_row : from_row + 1], _vector(weight, a.width), a.eps, normed[row : row + 1])
    _take(a, index, row, normed[row])


@njit(nogil=True)
def _rotate(a: Any, layer: Any, first: int, last: int) -> None:
    joint = _floats(a.joint, a.rows, (a.heads + 2 * a.kv_heads) * a.dim)
    queries = carray(_pointer(a.queries), (a.rows, a.heads, a.dim), np.float32)
    groups, parts = a.slots_in_all // LANES, a.dim // LANES
    keys = carray(_pointer(layer.keys), (groups, a.kv_heads, a.dim, LANES), np.float32)
    values = carray(_pointer(layer.values), (groups, a.kv_heads, parts, LANES, LANES), np.float32)
    rotate_and_store(
        joint[first:last], _vector(layer.query_norm, a.dim), _vector(layer.key_norm, a.dim), a.eps,
        _floats(a.cos, a.angles, a.rotated), _floats(a.sin, a.angles, a.rotated),
        _row_numbers(a, a.positions)[first:last], _row_numbers(a, a.slots)[first:last], queries[first:last],
        keys, values,
    )  # fmt: skip
    broken = _flags(a)
    for row in range(first, last):
        broken[row] = not is_finite(joint[row, a.heads * a.dim :])


@njit(nogil=True)
def _flags(a: Any) -> Flags:
    return carray(_pointer(a.broken), (a.rows,), np.bool_)


@njit(nogil=True)
def _attend(a: Any, layer: Any, thread: int, threads: int) -> None:
    attend(
        carray(_pointer(a.queries), (a.rows, a.heads, a.dim), np.float32), thread, threads,
        carray(_pointer(a.tables), (a.sequences, a.blocks), np.int64), _row_numbers(a, a.owners),
        _row_numbers(a, a.positions), _flags(a), a.block_size, a.kv_heads, layer.keys, layer.values, layer.scaling,
        layer.window,
        carray(_pointer(a.attended), (a.rows, a.heads, a.dim), np.float32),
    )  # fmt: skip


@njit(nogil=True)
def _run_phase(a: Any, phase: int, thread: int, threads: int) -> None:  # noqa: PLR0912 - one case a phase
    number, part = phase // PHASES, phase % PHASES
    first, last = a.rows * thread // threads, a.rows * (thread + 1) // threads
    index = PRODUCTS * number
    if number == a.layers:
        if part == 0:
            wanted = carray(_pointer(a.wanted), (a.wanted_rows,), np.int64)
            for row in range(a.wanted_rows * thread // threads, a.wanted_rows * (thread + 1) // threads):
                _norm(a, index, row, wanted[row], a.final_norm, True)
        else:
            _product(a, index, _floats(a.logits, a.wanted_rows, a.vocab), thread, threads)
        return
    layer = carray(_pointer(a.layer_table), (a.layers,), LAYER)[number]
    if part == _NORM:
        if number == 0:
            _embed(a, _floats(a.hidden, a.rows, a.width), first, last)
        for row in range(first, last):
            _norm(a, index, row, row, layer.input_norm, number > 0)
    elif part == _QUERY_KEY_VALUE:
        _product(a, index, _floats(a.joint, a.rows, (a.heads + 2 * a.kv_heads) * a.dim), thread, threads)
    elif part == _ROTATE:
        _rotate(a, layer, first, last)
    elif part == _ATTEND:
        _attend(a, layer, thread, threads)
    elif part == _TAKE_ATTENDED:
        for row in range(first, last):
            _take(a, index + 1, row, _floats(a.attended, a.rows, a.heads * a.dim)[row])
    elif part == _OUT:
        _product(a, index + 1, _floats(a.delta, a.rows, a.width), thread, threads)
    elif part == _MLP_NORM:
        for row in range(first, last):
            _norm(a, index + 2, row, row, layer.mlp_norm, True)
    elif part == _GATE_UP:
        _product(a, index + 2, _floats(a.gates, a.rows, 2 * a.inner), thread, threads)
    elif part == _ACTIVATE:
        gates, active = _floats(a.gates, a.rows, 2 * a.inner), _floats(a.active, a.rows, a.inner)
        for row in range(first, last):
            activate(gates[row], active[row])
            _take(a, index + 3, row, active[row])
    else:
        _product(a, index + 3, _floats(a.delta, a.rows, a.width), thread, threads)


@parallel.kernel()
def run_phases(address: Any) -> None:
    """Runs phases [first, last) on every thread."""
    a = carray(address, (1,), ARGUMENTS)[0]
    thread, threads = parallel.thread_number(), parallel.number_of_threads()
    if thread == 0 and a.bell >= 0:
        parallel.write(a.bell, address, 1)
    if a.in_tiles:
        load_tiles(a.tiles)
    hurry, given_up = carray(_pointer(a.hurry), (1,), np.int64), carray(_pointer(a.given_up), (a.last,), np.int64)
    for phase in range(a.first, a.last):
        if phase > a.first:
            if thread == 0:
                given_up[phase] = hurry[0]
            parallel.barrier()
            if given_up[phase]:  # What one thread has read counts for all of them.
                break
        _run_phase(a, phase, thread, threads)
    if a.in_tiles:
        release_tiles()
