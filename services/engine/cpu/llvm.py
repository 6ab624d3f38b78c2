"""What the generators of vector code have in common: LLVM's types, and instructions that llvmlite has no name for."""

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

binding.initialize_native_asmparser()

LANES = 16
"""Lanes of a vector: outputs of a block, or tokens of a block of keys."""

i8, i16, i32, i64, f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
ints, floats = ir.VectorType(i32, LANES), ir.VectorType(f32, LANES)
octets = ir.VectorType(i8, 4 * LANES)
void = ir.VoidType()


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


bfloats = ir.VectorType(_BFloat(), 2 * LANES)


def number(value: int) -> Any:
    """A 64-bit integer."""
    return ir.Constant(i64, value)


def integers(value: int) -> Any:
    """A vector of one integer in all lanes."""
    return ir.Constant(ints, [value] * LANES)


def pointer(builder: Any, address: Any, to: Any) -> Any:
    """An address as a pointer to a type."""
    return builder.inttoptr(address, to.as_pointer())


def variable(builder: Any, kind: Any) -> Any:
    """A variable, which LLVM keeps in a register."""
    return cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]


def splat(builder: Any, vector: Any, value: Any) -> Any:
    """A value in all lanes of a vector of this type."""
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, i32(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ints, [0] * LANES))


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Calls one of LLVM's own functions by name."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return builder.call(function, arguments)


def assemble(builder: Any, text: str, constraints: str, *arguments: Any) -> None:
    """An instruction in AT&T's syntax, with LLVM's constraints of its operands."""
    function = ir.FunctionType(void, [a.type for a in arguments])
    builder.call(ir.InlineAsm(function, text, constraints, side_effect=True), arguments)


def reals(value: float) -> Any:
    """A vector of one number in all lanes."""
    return ir.Constant(floats, [value] * LANES)
