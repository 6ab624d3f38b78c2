"""Attention weights from scores, 16 at once, in an order that does not depend on how many there are."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from services.engine.cpu.llvm import LANES, call, f32, floats, i32, ints, reals, splat, variable

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
        scores = builder.inttoptr(scores, floats.as_pointer())
        places = [builder.gep(builder.inttoptr(state, f32.as_pointer()), [i32(at)]) for at in range(3)]
        groups = builder.sdiv(count, ir.Constant(count.type, LANES))
        factor, first, last = (splat(builder, floats, scaling), *(_lanes(builder, limit) for limit in (start, end)))
        most, total = (variable(builder, floats) for _ in range(2))
        builder.store(reals(float("-inf")), most)
        builder.store(reals(0.0), total)
        with cgutils.for_range(builder, groups) as loop:
            score, seen = _score(builder, scores, loop.index, factor, first, last)
            score = builder.select(seen, score, reals(float("-inf")))
            builder.store(_largest(builder, builder.load(most), score), most)
        before = builder.load(places[0])
        here = builder.extract_element(_fold(builder, builder.load(most), _largest), i32(0))
        high = builder.select(builder.fcmp_ordered(">", here, before), here, before)
        highs = splat(builder, floats, high)
        with cgutils.for_range(builder, groups) as loop:
            score, seen = _score(builder, scores, loop.index, factor, first, last)
            weight = builder.select(seen, exponential(builder, builder.fsub(score, highs)), reals(0.0))
            builder.store(weight, builder.gep(scores, [loop.index])).align = 4
            builder.store(builder.fadd(builder.load(total), weight), total)
        shrink = exponential(builder, splat(builder, floats, builder.fsub(before, high)))
        shrink = builder.extract_element(shrink, i32(0))
        added = builder.extract_element(_fold(builder, builder.load(total), _sum), i32(0))
        builder.store(high, places[0])
        builder.store(builder.fadd(builder.fmul(builder.load(places[1]), shrink), added), places[1])
        builder.store(shrink, places[2])
        return context.get_dummy_value()

    return signature, generate


def exponential(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0 to about one unit in the last place: reduction and polynomial of Cephes' `expf` (Moshier).

    NaN stays NaN: only the power of two, which is made of an integer, is that of a number.
    """
    number, x = _largest(builder, x, reals(-87.0)), _largest_or_nan(builder, x, reals(-87.0))
    n = call(builder, "llvm.floor.v16f32", floats, builder.fadd(builder.fmul(number, reals(1.44269504)), reals(0.5)))
    r = _fused(builder, n, reals(-0.693359375), x)
    r = _fused(builder, n, reals(2.12194440e-4), r)
    p = reals(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = _fused(builder, p, r, reals(coefficient))
    p = _fused(builder, builder.fmul(p, r), r, builder.fadd(r, reals(1.0)))
    biased = builder.add(builder.fptosi(n, ints), ir.Constant(ints, [127] * LANES))
    power = builder.bitcast(builder.shl(biased, ir.Constant(ints, [23] * LANES)), floats)
    return builder.fmul(p, power)


def _score(builder: Any, scores: Any, group: Any, factor: Any, first: Any, last: Any) -> tuple[Any, Any]:
    """Scaled scores of a group, and which of them count."""
    score = builder.load(builder.gep(scores, [group]))
    score.align = 4
    start = _lanes(builder, builder.mul(group, ir.Constant(group.type, LANES)))
    at = builder.add(start, ir.Constant(ints, list(range(LANES))))
    seen = builder.and_(builder.icmp_signed(">=", at, first), builder.icmp_signed("<", at, last))
    return builder.fmul(score, factor), seen


def _lanes(builder: Any, value: Any) -> Any:
    return splat(builder, ints, builder.trunc(value, i32))


def _largest(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _largest_or_nan(builder: Any, a: Any, b: Any) -> Any:
    """NaN where a is."""
    return builder.select(builder.fcmp_unordered(">", a, b), a, b)


def _sum(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", floats, a, b, c)


def _fold(builder: Any, vector: Any, join: Any) -> Any:
    """All lanes joined pairwise: the result stands in the first."""
    width = LANES // 2
    while width:
        mask = ir.Constant(ints, [(at + width) % LANES for at in range(LANES)])
        vector = join(builder, vector, builder.shuffle_vector(vector, vector, mask))
        width //= 2
    return vector


weigh: Any = intrinsic(_weigh)
