"""The processor's own instructions for products of weights, as functions that compiled kernels call.

Weights lie in blocks of 16 outputs. For each unit of inputs (one float32, two of 16 bits or four of 8) a block has 64
bytes: the unit's weights of each output side by side; of float16, those of the second input lie behind the
first's. One instruction multiplies them by one unit of a row, broadcast to all outputs, and adds to 16 sums. A row's
sums are made in the order of its units whatever is beside it.

A function of a kind that this processor lacks compiles to nothing and must not be called. Instructions: Intel 64
Software Developer's Manual, volume 2 (VDPBF16PS, VPDPBUSD, TDPBF16PS, TDPBUSD, LDTILECFG).
"""

import ctypes
import sys
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

binding.initialize_native_asmparser()

LANES = 16
"""Outputs of a block."""
_AHEAD_BYTES = 4096
"""Weights are prefetched so far ahead: about what memory delivers to a core in the time it takes to answer."""
_TILE_BYTES = 1024
_TILE_ROWS = 16
_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158

_i8, _i16, _i32, _i64, _float = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_ints, _floats = ir.VectorType(_i32, LANES), ir.VectorType(_float, LANES)
_bytes = ir.VectorType(_i8, 4 * LANES)
_void = ir.VoidType()


class Kind(IntEnum):
    """A type of weights and the instructions that multiply by it."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    BFLOAT16_AVX512 = 3
    INT8_AVX512 = 4
    BFLOAT16_AMX = 5
    INT8_AMX = 6
    FLOAT16 = 7


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_bfloats = ir.VectorType(_BFloat(), 2 * LANES)


@cache
def kinds() -> frozenset[Kind]:
    """The kinds that this processor and its operating system have."""
    features = binding.get_host_cpu_features()
    found = {Kind.FLOAT32, Kind.FLOAT16, Kind.BFLOAT16, Kind.INT8}
    if features.get("avx512bf16"):
        found.add(Kind.BFLOAT16_AVX512)
    if features.get("avx512vnni") and features.get("avx512bw"):
        found.add(Kind.INT8_AVX512)
    if features.get("amx-tile") and _may_use_tiles():
        if features.get("amx-bf16"):
            found.add(Kind.BFLOAT16_AMX)
        if features.get("amx-int8") and Kind.INT8_AVX512 in found:
            found.add(Kind.INT8_AMX)
    return frozenset(found)


def _may_use_tiles() -> bool:
    """Asks Linux for the tile registers, which a process has to do once (Documentation/arch/x86/xstate.rst)."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0  # type: ignore[no-any-return]


def tile_configuration() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What `load_tiles` takes: eight tiles of 16 rows of 64 bytes."""
    configuration = np.zeros(64, np.uint8)
    configuration[0] = 1
    configuration[16:32].view(np.uint16)[:] = 64
    configuration[48:56] = _TILE_ROWS
    return configuration


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
            _assemble(builder, "ldtilecfg ($0)", "r,~{memory}", arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _release_tiles(_typing: Any) -> Any:
    """Lets the tile registers go, so that a change of threads need not save them."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        if Kind.BFLOAT16_AMX in kinds():
            _assemble(builder, "tilerelease", "~{memory}")
        return context.get_dummy_value()

    return types.void(), generate


load_tiles: Any = intrinsic(_load_tiles)
release_tiles: Any = intrinsic(_release_tiles)


def _generate_product(
    builder: Any, kind: Kind, shape: tuple[int, int], arguments: Any, *, ahead: bool, adds: bool
) -> None:  # fmt: skip
    rows, blocks = shape
    weights, units, x, stride, sums, sums_stride = arguments
    vector = _ints if kind in (Kind.INT8, Kind.INT8_AVX512) else _floats
    unit_bytes = 8 if kind in (Kind.BFLOAT16, Kind.FLOAT16, Kind.INT8) else 4
    totals = {(row, block): _room(builder, vector) for row in range(rows) for block in range(blocks)}
    ends = {}
    for (row, block), total in totals.items():
        address = builder.add(builder.add(sums, builder.mul(sums_stride, _number(row))), _number(4 * LANES * block))
        ends[row, block] = _pointer(builder, address, vector)
        if adds:
            before = builder.load(ends[row, block])
            before.align = 4
            builder.store(before, total)
        else:
            builder.store(ir.Constant(vector, None), total)
    block_bytes = builder.mul(units, _number(4 * LANES))
    with cgutils.for_range(builder, units) as loop:
        at = builder.mul(loop.index, _number(4 * LANES))
        column = builder.add(x, builder.mul(loop.index, _number(unit_bytes)))
        for block in range(blocks):
            address = builder.add(builder.add(weights, at), builder.mul(block_bytes, _number(block)))
            if ahead:
                next_one = _pointer(builder, builder.add(address, _number(_AHEAD_BYTES)), _i8)
                _call(builder, "llvm.prefetch.p0", _void, next_one, _i32(0), _i32(3), _i32(1))
            weight = builder.load(_pointer(builder, address, _ints))
            weight.align = 4 * LANES
            for row in range(rows):
                unit = builder.add(column, builder.mul(stride, _number(row)))
                total = totals[row, block]
                builder.store(_dot(builder, kind, builder.load(total), weight, unit), total)
    for place, total in totals.items():
        builder.store(builder.load(total), ends[place]).align = 4


def _dot(builder: Any, kind: Kind, total: Any, weight: Any, unit: Any) -> Any:
    """Adds to 16 sums the products of their weights with the unit of a row at an address."""
    if kind is Kind.FLOAT32:
        x = _splat(builder, _floats, builder.load(_pointer(builder, unit, _float)))
        return _call(builder, "llvm.fma.v16f32", _floats, builder.bitcast(weight, _floats), x, total)
    if kind in (Kind.BFLOAT16, Kind.FLOAT16):
        halves = _widen(builder, kind, weight)
        for half, address in zip(halves, (unit, builder.add(unit, _number(4))), strict=True):
            x = _splat(builder, _floats, builder.load(_pointer(builder, address, _float)))
            total = _call(builder, "llvm.fma.v16f32", _floats, half, x, total)
        return total
    if kind is Kind.INT8:
        return _dot_of_pairs(builder, total, weight, unit)
    x = _splat(builder, _ints, builder.load(_pointer(builder, unit, _i32)))
    if kind is Kind.BFLOAT16_AVX512:
        pair = (builder.bitcast(weight, _bfloats), builder.bitcast(x, _bfloats))
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _floats, total, *pair)
    pair = (builder.bitcast(x, _bytes), builder.bitcast(weight, _bytes))
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _ints, total, *pair)


def _widen(builder: Any, kind: Kind, weight: Any) -> tuple[Any, Any]:
    """The unit's first and second weights as float32."""
    if kind is Kind.BFLOAT16:
        low, high = builder.shl(weight, _constant(16)), builder.and_(weight, _constant(0xFFFF0000))
        return builder.bitcast(low, _floats), builder.bitcast(high, _floats)
    shorts, nothing = (builder.bitcast(v, ir.VectorType(_i16, 2 * LANES)) for v in (weight, _constant(0)))
    masks = (ir.Constant(_ints, list(range(first, first + LANES))) for first in (0, LANES))
    parts = (builder.shuffle_vector(shorts, nothing, mask) for mask in masks)
    halves = (builder.bitcast(part, ir.VectorType(ir.HalfType(), LANES)) for part in parts)
    low, high = (builder.fpext(half, _floats) for half in halves)
    return low, high


def _dot_of_pairs(builder: Any, total: Any, weight: Any, unit: Any) -> Any:
    """8-bit weights by a row's four inputs, given as 16-bit integers in the order 0, 2, 1, 3."""
    halves = ir.VectorType(_i16, 2 * LANES)
    eight = ir.Constant(halves, [8] * 2 * LANES)
    shorts = builder.bitcast(weight, halves)
    even = builder.ashr(builder.shl(shorts, eight), eight)
    odd = builder.ashr(shorts, eight)
    for part, address in ((even, unit), (odd, builder.add(unit, _number(4)))):
        x = builder.bitcast(_splat(builder, _ints, builder.load(_pointer(builder, address, _i32))), halves)
        if binding.get_host_cpu_features().get("avx2"):
            total = builder.add(total, _multiply_add_pairs(builder, part, x))
            continue
        for shift in (0, 16):  # What LLVM makes the best of on other processors.
            factors = [
                builder.ashr(builder.shl(builder.bitcast(v, _ints), _constant(16 - shift)), _constant(16))
                for v in (part, x)
            ]
            total = builder.add(total, builder.mul(*factors))
    return total


def _multiply_add_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Sums [16] of the products of neighbouring 16-bit integers [32], by halves of a vector."""
    quarter, result = ir.VectorType(_i16, LANES), ir.VectorType(_i32, LANES // 2)
    sums = []
    for first in (0, LANES):
        mask = ir.Constant(ir.VectorType(_i32, LANES), list(range(first, first + LANES)))
        parts = [builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask) for v in (a, b)]
        assert all(part.type == quarter for part in parts)
        sums.append(_call(builder, "llvm.x86.avx2.pmadd.wd", result, *parts))
    return builder.shuffle_vector(*sums, ir.Constant(_ints, list(range(LANES))))


def _generate_tiles(
    builder: Any, kind: Kind, tiles: int, blocks: int, weights: Any, units: Any, x: Any, stride: Any, sums: Any
) -> None:
    """Tiles of sums come first among the eight registers, then those of rows; weights take turns in the others."""
    operation = "tdpbf16ps" if kind is Kind.BFLOAT16_AMX else "tdpbusd"
    first_rows, first_weights = tiles * blocks, tiles * blocks + tiles
    line, block_bytes = _number(64), builder.mul(units, _number(64))
    tile_stride = builder.mul(stride, _number(_TILE_ROWS))
    for tile in range(tiles * blocks):
        _assemble(builder, f"tilezero %tmm{tile}", "")
    with cgutils.for_range(builder, builder.sdiv(units, _number(LANES))) as loop:
        column = builder.add(x, builder.mul(loop.index, line))
        for tile in range(tiles):
            address = builder.add(column, builder.mul(tile_stride, _number(tile)))
            _assemble(builder, f"tileloadd ($0,$1,1), %tmm{first_rows + tile}", "r,r,~{memory}", address, stride)
        for block in range(blocks):
            address = builder.add(weights, builder.mul(block_bytes, _number(block)))
            address = builder.add(address, builder.mul(loop.index, _number(_TILE_BYTES)))
            register = first_weights + block % (8 - first_weights)
            fetches = "; ".join(f"prefetcht0 {_AHEAD_BYTES + 64 * at}($0)" for at in range(_TILE_ROWS))
            _assemble(
                builder, f"{fetches}; tileloadd ($0,$1,1), %tmm{register}", "r,r,~{memory}", address, line
            )  # fmt: skip
            for tile in range(tiles):
                total = tile * blocks + block
                _assemble(builder, f"{operation} %tmm{register}, %tmm{first_rows + tile}, %tmm{total}", "")
    for tile in range(tiles * blocks):
        address = builder.add(sums, _number(_TILE_BYTES * tile))
        _assemble(builder, f"tilestored %tmm{tile}, ($0,$1,1)", "r,r,~{memory}", address, line)


def _number(value: int) -> Any:
    return ir.Constant(_i64, value)


def _constant(value: int) -> Any:
    return ir.Constant(_ints, [value] * LANES)


def _pointer(builder: Any, address: Any, to: Any) -> Any:
    return builder.inttoptr(address, to.as_pointer())


def _room(builder: Any, kind: Any) -> Any:
    """A variable, which LLVM keeps in a register."""
    return cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]


def _splat(builder: Any, vector: Any, value: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, _i32(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_ints, [0] * LANES))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return builder.call(function, arguments)


def _assemble(builder: Any, text: str, constraints: str, *arguments: Any) -> None:
    function = ir.FunctionType(_void, [a.type for a in arguments])
    builder.call(ir.InlineAsm(function, text, constraints, side_effect=True), arguments)
