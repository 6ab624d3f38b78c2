"""Products of rows with weights packed once: weights are read once for all rows, and rows do not touch each other.

The bits of a row depend on the kind of the product and never on how many rows there are: its sums are made in one
order, and sums of 8-bit products are exact in any. Weights are `packed`; a row is put into the form that its kind
multiplies by `to_units`.

8 bits: rows are stored plus 128, because the instructions take one factor without a sign; an output's sum of weights,
times 128, is taken off again.
"""

from typing import Any

import numpy as np
from numba import njit
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from services.engine.cpu import parallel
from services.engine.cpu.instructions import rows_times_blocks, tiles_times_blocks
from services.engine.cpu.kernels import Floats
from services.engine.cpu.kinds import HAS_32_REGISTERS, Kind
from services.engine.cpu.llvm import LANES
from services.engine.cpu.packed import BLOCKS_AT_ONCE

MOST_ROWS = 32
"""Rows are filled up to a multiple of this number in memory: two tiles."""
_FEW_ROWS = 4
"""Up to so many rows of 8 bits vectors are faster than tiles."""
ROOM_BYTES = 4096
"""What `multiply` needs for sums."""
_pointer: Any = parallel.pointer
_ONE = np.float32(1.0)
_MAGNITUDE, _INFINITY, _QUIET = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x40)
"""Bits of a float32: all but its sign, those of infinity (what is larger is NaN), and the one of a bfloat16 NaN."""


def _by_rows(kind: Kind) -> Any:
    """A function that multiplies 1, 2, 4 or 8 rows by so many blocks as `_blocks_of` says."""
    number = int(kind)
    one, two, four, eight = (rows_times_blocks(kind, rows, _blocks_of.py_func(number, rows)) for rows in (1, 2, 4, 8))

    @njit(nogil=True)
    def multiply(rows: int, weights: int, units: int, x: int, stride: int, sums: int) -> None:
        if rows == 8:
            eight(weights, units, x, stride, sums, 4 * LANES * _blocks_of(number, 8))
        elif rows == 4:
            four(weights, units, x, stride, sums, 4 * LANES * _blocks_of(number, 4))
        elif rows == 2:
            two(weights, units, x, stride, sums, 4 * LANES * _blocks_of(number, 2))
        else:
            one(weights, units, x, stride, sums, 4 * LANES * _blocks_of(number, 1))

    return multiply


@njit(nogil=True)
def _blocks_of(kind: int, rows: int) -> int:
    """So many blocks at once leave the sums of so many rows in registers."""
    if kind in (Kind.FLOAT32, Kind.FLOAT16, Kind.BFLOAT16, Kind.INT8):
        return 2 if rows <= 2 else 1
    return 4 if rows <= 4 else 2


_float32, _float16 = _by_rows(Kind.FLOAT32), _by_rows(Kind.FLOAT16)
_bfloat16, _int8 = _by_rows(Kind.BFLOAT16), _by_rows(Kind.INT8)
_wide_bfloat16, _wide_int8 = _by_rows(Kind.BFLOAT16_AVX512), _by_rows(Kind.INT8_AVX512)
_bfloat16_tile, _bfloat16_tiles = (tiles_times_blocks(Kind.BFLOAT16_AMX, tiles, 2) for tiles in (1, 2))
_int8_tile, _int8_tiles = (tiles_times_blocks(Kind.INT8_AMX, tiles, 2) for tiles in (1, 2))


@njit(nogil=True)
def _highest(all_bits: NDArray[np.uint32]) -> np.uint32:
    """Bits of the largest magnitude of a row. As integers these are in the same order, and NaN is the largest."""
    highest = np.uint32(0)
    for bits in all_bits:
        highest = max(highest, np.uint32(bits & _MAGNITUDE))
    return highest


@njit(nogil=True)
def is_finite(row: Floats) -> bool:
    """Whether all of a row's numbers are finite."""
    return bool(_highest(row.view(np.uint32)) < _INFINITY)


@njit(nogil=True)
def to_units(kind: int, row: Floats, units: int, address: int) -> np.float32:
    """Writes a row [in] as a product of this kind reads it, filled up with zeros, and returns the row's scale.

    What is not finite stays so: in 8 bits the scale is NaN then, and what the row is written as does not matter.
    """
    width = row.shape[0]
    all_bits = row.view(np.uint32)
    if kind in (Kind.FLOAT32, Kind.FLOAT16, Kind.BFLOAT16):
        padded = units if kind == Kind.FLOAT32 else 2 * units
        floats = carray(_pointer(address), (padded,), np.float32)
        floats[:width] = row
        floats[width:] = np.float32(0.0)
        return _ONE
    if kind in (Kind.BFLOAT16_AVX512, Kind.BFLOAT16_AMX):
        halves = carray(_pointer(address), (2 * units,), np.uint16)
        halves[width:] = np.uint16(0)
        for i in range(width):  # To nearest, ties to even.
            bits = all_bits[i]
            upper = bits >> np.uint32(16)
            rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
            halves[i] = upper | _QUIET if bits & _MAGNITUDE > _INFINITY else rounded
        return _ONE
    highest = _highest(all_bits)
    if highest >= _INFINITY:
        return np.float32(np.nan)
    most = max(np.uint32(highest).view(np.float32), np.float32(1e-12))
    to_integer = np.float32(127.0) / most
    if kind == Kind.INT8:
        shorts = carray(_pointer(address), (units, 4), np.int16)
        shorts[width >> 2 :] = np.int16(0)
        for i in range(width):
            at = i & 3
            place = at if at in (0, 3) else 3 - at
            shorts[i >> 2, place] = np.int16(np.rint(row[i] * to_integer))
    else:
        integers = carray(_pointer(address), (4 * units,), np.uint8)
        integers[width:] = np.uint8(0)
        for i in range(width):
            integers[i] = np.uint8(np.int32(np.rint(row[i] * to_integer)) + np.int32(128))
    return most / np.float32(127.0)


@njit(nogil=True)
def _vectors(kind: int, rows: int, weights: int, units: int, x: int, stride: int, sums: int) -> None:
    if kind == Kind.FLOAT32:
        _float32(rows, weights, units, x, stride, sums)
    elif kind == Kind.FLOAT16:
        _float16(rows, weights, units, x, stride, sums)
    elif kind == Kind.BFLOAT16:
        _bfloat16(rows, weights, units, x, stride, sums)
    elif kind == Kind.INT8:
        _int8(rows, weights, units, x, stride, sums)
    elif kind == Kind.BFLOAT16_AVX512:
        _wide_bfloat16(rows, weights, units, x, stride, sums)
    else:
        _wide_int8(rows, weights, units, x, stride, sums)


@njit(nogil=True)
def _tiles(kind: int, tiles: int, weights: int, units: int, x: int, stride: int, sums: int) -> None:
    if kind == Kind.BFLOAT16_AMX:
        if tiles == 1:
            _bfloat16_tile(weights, units, x, stride, sums)
        else:
            _bfloat16_tiles(weights, units, x, stride, sums)
    elif tiles == 1:
        _int8_tile(weights, units, x, stride, sums)
    else:
        _int8_tiles(weights, units, x, stride, sums)


@njit(nogil=True)
def _store(
    sums: int, rows: int, first: int, last: int, stride: int, row_scales: Floats, scales: Floats, offsets: Any,
    bias: Floats, y: Floats,
) -> None:  # fmt: skip
    """Makes sums, of which a row's next begins `stride` further on, outputs [first, last) of y [rows, outputs]."""
    count = last - first
    if not scales.shape[0]:
        floats = carray(_pointer(sums), (rows, stride), np.float32)
        for row in range(rows):
            for i in range(count):
                y[row, first + i] = floats[row, i]
    else:
        integers = carray(_pointer(sums), (rows, stride), np.int32)
        for row in range(rows):
            scale = row_scales[row]
            for i in range(count):
                total = np.float32(integers[row, i] - offsets[first + i])
                y[row, first + i] = total * (scales[first + i] * scale)
    if bias.shape[0]:
        for row in range(rows):
            for i in range(first, last):
                y[row, i] += bias[i]


@njit(nogil=True)
def multiply(
    kind: int, weights: int, units: int, out_features: int, first: int, last: int, x: int, stride: int,
    row_scales: Floats, scales: Floats, offsets: Any, bias: Floats, room: int, y: Floats,
) -> None:  # fmt: skip
    """y = x @ weight.T + bias for the groups of outputs [first, last), of OUTPUTS_AT_ONCE each.

    weights is the address of the blocks; x that of rows as `to_units` writes them, `stride` bytes apart, with room for
    a multiple of MOST_ROWS; row_scales [rows]; scales and offsets [outputs] or empty, bias [out] or empty; room is the
    address of 4 KiB for sums; y [rows, out].
    """
    total = y.shape[0]
    in_tiles = kind == Kind.BFLOAT16_AMX or (kind == Kind.INT8_AMX and total > _FEW_ROWS)
    vectors = Kind.INT8_AVX512 if kind == Kind.INT8_AMX else kind
    for group in range(first, last):
        row = 0
        while row < total:
            left, here = total - row, x + row * stride
            if in_tiles:
                tiles = 1 if left <= MOST_ROWS // 2 else 2
                rows, blocks, next_row = min(left, tiles * LANES), 2, LANES
            else:
                tiles = 1
                # Three rows are computed as four, which takes less than two and one; so are seven as eight.
                computed = 8 if left >= 7 and HAS_32_REGISTERS else 4 if left >= 3 else left
                rows = min(left, computed)
                blocks = _blocks_of(vectors, computed)
                next_row = blocks * LANES
            for block in range(group * BLOCKS_AT_ONCE, (group + 1) * BLOCKS_AT_ONCE, blocks):
                output = block * LANES
                if output >= out_features:
                    break
                where = weights + block * units * 4 * LANES
                if not in_tiles:
                    _vectors(vectors, computed, where, units, here, stride, room)
                    end = min(out_features, output + blocks * LANES)
                    _store(
                        room, rows, output, end, next_row, row_scales[row:], scales, offsets, bias, y[row : row + rows]
                    )  # fmt: skip
                    continue
                _tiles(kind, tiles, where, units, here, stride, room)
                for part in range(tiles * blocks):
                    at, begin = row + part // blocks * LANES, output + part % blocks * LANES
                    end, until = min(out_features, begin + LANES), min(row + rows, at + LANES)
                    if begin < end and at < until:
                        _store(
                            room + part * 4 * LANES * LANES, until - at, begin, end, LANES, row_scales[at:], scales,
                            offsets, bias, y[at:until],
                        )  # fmt: skip
            row += rows
