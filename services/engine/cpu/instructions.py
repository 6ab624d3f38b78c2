"""The processor's own instructions for products of weights, as functions that compiled kernels call.

Weights lie in blocks of 16 outputs. For each unit of inputs (one float32, two of 16 bits or four of 8) a block has 64
bytes: the unit's weights of each output side by side; of float16, those of the second input lie behind the
first's. One instruction multiplies them by one unit of a row, broadcast to all outputs, and adds to 16 sums. A row's
sums are made in the order of its units whatever is beside it.

A function of a kind that this processor lacks compiles to nothing and must not be called. Instructions: Intel 64
Software Developer's Manual, volume 2 (VDPBF16PS, VPDPBUSD, TDPBF16PS, TDPBUSD, LDTILECFG).
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from services.engine.cpu.kinds import TILE_ROWS, Kind, kinds
from services.engine.cpu.llvm import (
    LANES,
    assemble,
    bfloats,
    call,
    f32,
    floats,
    i8,
    i16,
    i32,
    integers,
    ints,
    number,
    octets,
    pointer,
    splat,
    variable,
    void,
)  # fmt: skip

_AHEAD_BYTES = 4096
"""Weights are prefetched so far ahead: about what memory delivers to a core in the time it takes to answer."""
_TILE_BYTES = 1024


def rows_times_blocks(kind: Kind, rows: int, blocks: int, *, ahead: bool = True, adds: bool = False) -> Any:
    """A function (weights, units, x, x_stride, sums, stride) for so many rows and blocks, whose sums stay in registers.

    All are integers: the address of the first block, the units of a row, the address of the first row, the bytes from
    a row to the next, the address of sums [rows, blocks, LANES], float32 or 32-bit integers, which it writes or, when
    it `adds`, adds to, and the bytes from a row of them to the next. `ahead` fetches what follows the weights.
    """
    signature = types.void(*[types.intp] * 6)

    @intrinsic
    def multiply(
        _typing: Any, _weights: Any, _units: Any, _x: Any, _x_stride: Any, _sums: Any, _stride: Any
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            if kind in kinds():
                _generate_product(builder, kind, (rows, blocks), arguments, ahead=ahead, adds=adds)
            return context.get_dummy_value()

        return signature, generate

    return multiply


def tiles_times_blocks(kind: Kind, tiles: int, blocks: int) -> Any:
    """The same for so many tiles of 16 rows, in tile registers: sums [tiles, blocks, 16, LANES]."""
    signature = types.void(*[types.intp] * 5)

    @intrinsic
    def multiply(_typing: Any, _weights: Any, _units: Any, _x: Any, _stride: Any, _sums: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            if kind in kinds():
                _generate_tiles(builder, kind, tiles, blocks, *arguments)
            return context.get_dummy_value()

        return signature, generate

    return multiply


def _load_tiles(_typing: Any, _address: Any) -> Any:
    """Makes the tile registers of this thread what a configuration says, given by its address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if Kind.BFLOAT16_AMX in kinds():
            assemble(builder, "ldtilecfg ($0)", "r,~{memory}", arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _release_tiles(_typing: Any) -> Any:
    """Lets the tile registers go, so that a change of threads need not save them."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        if Kind.BFLOAT16_AMX in kinds():
            assemble(builder, "tilerelease", "~{memory}")
        return context.get_dummy_value()

    return types.void(), generate


load_tiles: Any = intrinsic(_load_tiles)
release_tiles: Any = intrinsic(_release_tiles)


def _generate_product(
    builder: Any, kind: Kind, shape: tuple[int, int], arguments: Any, *, ahead: bool, adds: bool
) -> None:  # fmt: skip
    rows, blocks = shape
    weights, units, x, stride, sums, sums_stride = arguments
    vector = ints if kind in (Kind.INT8, Kind.INT8_AVX512) else floats
    totals = {(row, block): variable(builder, vector) for row in range(rows) for block in range(blocks)}
    ends = {}
    for (row, block), total in totals.items():
        address = builder.add(builder.add(sums, builder.mul(sums_stride, number(row))), number(4 * LANES * block))
        ends[row, block] = pointer(builder, address, vector)
        if adds:
            before = builder.load(ends[row, block])
            before.align = 4
            builder.store(before, total)
        else:
            builder.store(ir.Constant(vector, None), total)
    block_bytes = builder.mul(units, number(4 * LANES))
    with cgutils.for_range(builder, units) as loop:
        at = builder.mul(loop.index, number(4 * LANES))
        column = builder.add(x, builder.mul(loop.index, number(kind.unit_bytes)))
        for block in range(blocks):
            address = builder.add(builder.add(weights, at), builder.mul(block_bytes, number(block)))
            if ahead:
                next_one = pointer(builder, builder.add(address, number(_AHEAD_BYTES)), i8)
                call(builder, "llvm.prefetch.p0", void, next_one, i32(0), i32(3), i32(1))
            weight = builder.load(pointer(builder, address, ints))
            weight.align = 4 * LANES
            for row in range(rows):
                unit = builder.add(column, builder.mul(stride, number(row)))
                total = totals[row, block]
                builder.store(_dot(builder, kind, builder.load(total), weight, unit), total)
    for place, total in totals.items():
        builder.store(builder.load(total), ends[place]).align = 4


def _dot(builder: Any, kind: Kind, total: Any, weight: Any, unit: Any) -> Any:
    """Adds to 16 sums the products of their weights with the unit of a row at an address."""
    if kind is Kind.FLOAT32:
        x = splat(builder, floats, builder.load(pointer(builder, unit, f32)))
        return call(builder, "llvm.fma.v16f32", floats, builder.bitcast(weight, floats), x, total)
    if kind in (Kind.BFLOAT16, Kind.FLOAT16):
        halves = _widen(builder, kind, weight)
        for half, address in zip(halves, (unit, builder.add(unit, number(4))), strict=True):
            x = splat(builder, floats, builder.load(pointer(builder, address, f32)))
            total = call(builder, "llvm.fma.v16f32", floats, half, x, total)
        return total
    if kind is Kind.INT8:
        return _dot_of_pairs(builder, total, weight, unit)
    x = splat(builder, ints, builder.load(pointer(builder, unit, i32)))
    if kind is Kind.BFLOAT16_AVX512:
        pair = (builder.bitcast(weight, bfloats), builder.bitcast(x, bfloats))
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", floats, total, *pair)
    pair = (builder.bitcast(x, octets), builder.bitcast(weight, octets))
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", ints, total, *pair)


def _widen(builder: Any, kind: Kind, weight: Any) -> tuple[Any, Any]:
    """The unit's first and second weights as float32."""
    if kind is Kind.BFLOAT16:
        low, high = builder.shl(weight, integers(16)), builder.and_(weight, integers(0xFFFF0000))
        return builder.bitcast(low, floats), builder.bitcast(high, floats)
    shorts, nothing = (builder.bitcast(v, ir.VectorType(i16, 2 * LANES)) for v in (weight, integers(0)))
    masks = (ir.Constant(ints, list(range(first, first + LANES))) for first in (0, LANES))
    parts = (builder.shuffle_vector(shorts, nothing, mask) for mask in masks)
    halves = (builder.bitcast(part, ir.VectorType(ir.HalfType(), LANES)) for part in parts)
    low, high = (builder.fpext(half, floats) for half in halves)
    return low, high


def _dot_of_pairs(builder: Any, total: Any, weight: Any, unit: Any) -> Any:
    """8-bit weights by a row's four inputs, given as 16-bit integers in the order 0, 2, 1, 3."""
    halves = ir.VectorType(i16, 2 * LANES)
    eight = ir.Constant(halves, [8] * 2 * LANES)
    shorts = builder.bitcast(weight, halves)
    even = builder.ashr(builder.shl(shorts, eight), eight)
    odd = builder.ashr(shorts, eight)
    for part, address in ((even, unit), (odd, builder.add(unit, number(4)))):
        x = builder.bitcast(splat(builder, ints, builder.load(pointer(builder, address, i32))), halves)
        if binding.get_host_cpu_features().get("avx2"):
            total = builder.add(total, _multiply_add_pairs(builder, part, x))
            continue
        for shift in (0, 16):  # What LLVM makes the best of on other processors.
            factors = [
                builder.ashr(builder.shl(builder.bitcast(v, ints), integers(16 - shift)), integers(16))
                for v in (part, x)
            ]
            total = builder.add(total, builder.mul(*factors))
    return total


def _multiply_add_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Sums [16] of the products of neighbouring 16-bit integers [32], by halves of a vector."""
    quarter, result = ir.VectorType(i16, LANES), ir.VectorType(i32, LANES // 2)
    sums = []
    for first in (0, LANES):
        mask = ir.Constant(ir.VectorType(i32, LANES), list(range(first, first + LANES)))
        parts = [builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask) for v in (a, b)]
        assert all(part.type == quarter for part in parts)
        sums.append(call(builder, "llvm.x86.avx2.pmadd.wd", result, *parts))
    return builder.shuffle_vector(*sums, ir.Constant(ints, list(range(LANES))))


def _generate_tiles(
    builder: Any, kind: Kind, tiles: int, blocks: int, weights: Any, units: Any, x: Any, stride: Any, sums: Any
) -> None:
    """Tiles of sums come first among the eight registers, then those of rows; weights take turns in the others."""
    operation = "tdpbf16ps" if kind is Kind.BFLOAT16_AMX else "tdpbusd"
    first_rows, first_weights = tiles * blocks, tiles * blocks + tiles
    line, block_bytes = number(64), builder.mul(units, number(64))
    tile_stride = builder.mul(stride, number(TILE_ROWS))
    for tile in range(tiles * blocks):
        assemble(builder, f"tilezero %tmm{tile}", "")
    with cgutils.for_range(builder, builder.sdiv(units, number(LANES))) as loop:
        column = builder.add(x, builder.mul(loop.index, line))
        for tile in range(tiles):
            address = builder.add(column, builder.mul(tile_stride, number(tile)))
            assemble(builder, f"tileloadd ($0,$1,1), %tmm{first_rows + tile}", "r,r,~{memory}", address, stride)
        for block in range(blocks):
            address = builder.add(weights, builder.mul(block_bytes, number(block)))
            address = builder.add(address, builder.mul(loop.index, number(_TILE_BYTES)))
            register = first_weights + block % (8 - first_weights)
            fetches = "; ".join(f"prefetcht0 {_AHEAD_BYTES + 64 * at}($0)" for at in range(TILE_ROWS))
            assemble(
                builder, f"{fetches}; tileloadd ($0,$1,1), %tmm{register}", "r,r,~{memory}", address, line
            )  # fmt: skip
            for tile in range(tiles):
                total = tile * blocks + block
                assemble(builder, f"{operation} %tmm{register}, %tmm{first_rows + tile}, %tmm{total}", "")
    for tile in range(tiles * blocks):
        address = builder.add(sums, number(_TILE_BYTES * tile))
        assemble(builder, f"tilestored %tmm{tile}, ($0,$1,1)", "r,r,~{memory}", address, line)
