"""Attention weights from scores, 16 at once, in an order that does not depend on how many there are."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from services.engine.cpu.instructions import LANES

_i32, _float = ir.IntType(32), ir.FloatType()
_ints, _floats = ir.VectorType(_i32, LANES), ir.VectorType(_float, LANES)
_POLYNOMIAL = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1


def _weigh(_typing: Any, _scores: Any, _count: Any, _scaling: Any, _start: Any, _end: Any, _state: Any) -> Any:
    """Makes scores weights exp(score * scaling - highest), 0 outside of [start, end).

    scores is the address of `count` float32, a multiple of 16. state is the address of three: the highest score so far
    and the sum of weights, which are brought up to date, and what earlier sums are to be multiplied by (the running
    softmax of Milakov and Gimelshein, arXiv 1805.02867).
    """
    signature = types.void(types.intp, types.intp, types.float32, types.intp, types.intp, types.intp)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        scores, count, scaling, start, end, state = arguments
        scores = builder.inttoptr(scores, _floats.as_pointer())
        places = [builder.gep(builder.inttoptr(state, _float.as_pointer()), [_i32(at)]) for at in range(3)]
        groups = builder.sdiv(count, ir.Constant(count.type, LANES))
        factor, first, last = (_splat(builder, _floats, scaling), *(_lanes(builder, limit) for limit in (start, end)))
        most, total = (cgutils.alloca_once(builder, _floats) for _ in range(2))  # type: ignore[no-untyped-call]
        builder.store(_constant(float("-inf")), most)
        builder.store(_constant(0.0), total)
        with cgutils.for_range(builder, groups) as loop:
            score, seen = _score(builder, scores, loop.index, factor, first, last)
            score = builder.select(seen, score, _constant(float("-inf")))
            builder.store(_largest(builder, builder.load(most), score), most)
        before = builder.load(places[0])
        here = builder.extract_element(_fold(builder, builder.load(most), _largest), _i32(0))
        high = builder.select(builder.fcmp_ordered(">", here, before), here, before)
        highs = _splat(builder, _floats, high)
        with cgutils.for_range(builder, groups) as loop:
            score, seen = _score(builder, scores, loop.index, factor, first, last)
            weight = builder.select(seen, exponential(builder, builder.fsub(score, highs)), _constant(0.0))
            builder.store(weight, builder.gep(scores, [loop.index])).align = 4
            builder.store(builder.fadd(builder.load(total), weight), total)
        shrink = exponential(builder, _splat(builder, _floats, builder.fsub(before, high)))
        shrink = builder.extract_element(shrink, _i32(0))
        added = builder.extract_element(_fold(builder, builder.load(total), _sum), _i32(0))
        builder.store(high, places[0])
        builder.store(builder.fadd(builder.fmul(builder.load(places[1]), shrink), added), places[1])
        builder.store(shrink, places[2])
        return context.get_dummy_value()

    return signature, generate


def exponential(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0 to about one unit in the last place: reduction and polynomial of Cephes' `expf` (Moshier)."""
    x = _largest(builder, x, _constant(-87.0))
    n = _call(builder, "llvm.floor.v16f32", builder.fadd(builder.fmul(x, _constant(1.44269504)), _constant(0.5)))
    r = _fused(builder, n, _constant(-0.693359375), x)
    r = _fused(builder, n, _constant(2.12194440e-4), r)
    p = _constant(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = _fused(builder, p, r, _constant(coefficient))
    p = _fused(builder, builder.fmul(p, r), r, builder.fadd(r, _constant(1.0)))
    biased = builder.add(builder.fptosi(n, _ints), ir.Constant(_ints, [127] * LANES))
    power = builder.bitcast(builder.shl(biased, ir.Constant(_ints, [23] * LANES)), _floats)
    return builder.fmul(p, power)


def _score(builder: Any, scores: Any, group: Any, factor: Any, first: Any, last: Any) -> tuple[Any, Any]:
    """Scaled scores of a group, and which of them count."""
    score = builder.load(builder.gep(scores, [group]))
    score.align = 4
    start = _lanes(builder, builder.mul(group, ir.Constant(group.type, LANES)))
    at = builder.add(start, ir.Constant(_ints, list(range(LANES))))
    seen = builder.and_(builder.icmp_signed(">=", at, first), builder.icmp_signed("<", at, last))
    return builder.fmul(score, factor), seen


def _lanes(builder: Any, value: Any) -> Any:
    return _splat(builder, _ints, builder.trunc(value, _i32))


def _splat(builder: Any, vector: Any, value: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, _i32(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_ints, [0] * LANES))


def _constant(value: float) -> Any:
    return ir.Constant(_floats, [value] * LANES)


def _largest(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _sum(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", a, b, c)


def _fold(builder: Any, vector: Any, join: Any) -> Any:
    """All lanes joined pairwise: the result stands in the first."""
    width = LANES // 2
    while width:
        mask = ir.Constant(_ints, [(at + width) % LANES for at in range(LANES)])
        vector = join(builder, vector, builder.shuffle_vector(vector, vector, mask))
        width //= 2
    return vector


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(_floats, [a.type for a in arguments]), name)
    return builder.call(function, arguments)


weigh: Any = intrinsic(_weigh)
