"""Small CPU kernels between the large products of a decoder step, compiled once by numba and kept on disk.

Each does in one pass what costs half a dozen tensor operations otherwise, whose dispatch takes longer than their work
at a few rows. Every kernel treats one row after another with the same instructions, so a row's bits depend on that row.
All arrays are C-contiguous float32 unless said otherwise.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from services.engine.cpu.llvm import LANES

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

FAST = {"reassoc", "contract", "nsz", "arcp"}
_ONE = np.float32(1.0)


@njit(nogil=True, fastmath=FAST)
def rms_norm(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight. x and out [rows, width]."""
    rows, width = x.shape
    for row in range(rows):
        total = np.float32(0.0)
        for i in range(width):
            total += x[row, i] * x[row, i]
        scale = _ONE / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            out[row, i] = x[row, i] * scale * weight[i]


@njit(inline="always", fastmath=FAST)
def rotate_head(source: Floats, weight: Floats, eps: np.float32, cos: Floats, sin: Floats, out: Floats) -> None:
    """Normalises a head (when there is a weight) and rotates its first dimensions. All [head_dim] or [rotated dim]."""
    dim, rotated = source.shape[0], cos.shape[0]
    scale = _ONE
    if weight.shape[0]:
        total = np.float32(0.0)
        for i in range(dim):
            total += source[i] * source[i]
        scale = _ONE / np.sqrt(total / np.float32(dim) + eps)
    half = rotated // 2
    for i in range(half):
        a, b = source[i] * scale, source[i + half] * scale
        if weight.shape[0]:
            a, b = a * weight[i], b * weight[i + half]
        out[i] = a * cos[i] - b * sin[i]
        out[i + half] = b * cos[i + half] + a * sin[i + half]
    for i in range(rotated, dim):
        a = source[i] * scale
        out[i] = a * weight[i] if weight.shape[0] else a


@njit(nogil=True, fastmath=FAST)
def rotate_and_store(
    joint: Floats, query_weight: Floats, key_weight: Floats, eps: np.float32, cos: Floats, sin: Floats,
    positions: Ints, slots: Ints, queries: Floats, keys: Floats, values: Floats,
) -> None:  # fmt: skip
    """Takes joint query, key and value rows apart: queries rotated, rotated keys and values into the cache.

    joint [rows, (heads + 2 * kv_heads) * dim]; weights [dim], or [0] where heads are not normalised; cos and sin
    [positions, rotated]; positions and slots [rows]; queries [rows, heads, dim]; keys [slots / 16, kv_heads, dim, 16];
    values [slots / 16, kv_heads, dim / 16, 16, 16].
    """
    kv_heads, dim = keys.shape[1], keys.shape[2]
    heads = queries.shape[1]
    rotated_key = np.empty(dim, np.float32)
    for row in range(joint.shape[0]):
        c, s = cos[positions[row]], sin[positions[row]]
        for head in range(heads):
            source = joint[row, head * dim : (head + 1) * dim]
            rotate_head(source, query_weight, eps, c, s, queries[row, head])
        block, lane = slots[row] // LANES, slots[row] % LANES
        for head in range(kv_heads):
            at = (heads + head) * dim
            rotate_head(joint[row, at : at + dim], key_weight, eps, c, s, rotated_key)
            at += kv_heads * dim
            for i in range(dim):
                keys[block, head, i, lane] = rotated_key[i]
            for part in range(dim // LANES):
                for i in range(LANES):
                    values[block, head, part, lane, i] = joint[row, at + part * LANES + i]


@njit(inline="always", fastmath=FAST)
def fast_exp(x: np.float32) -> np.float32:
    """exp(x) for |x| <= 87 to about one unit in the last place; vectorises where the C library's would be called.

    Reduction and polynomial are those of `expf` in Cephes (Moshier).
    """
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    result: np.float32 = (p * r * r + r + _ONE) * power
    return result


@njit(nogil=True, fastmath=FAST, error_model="numpy")  # A check of the divisor would keep it from vectorising.
def activate(gates: Floats, active: Floats) -> None:
    """active = silu(gate) * up. gates [2 * inner]: gate, then up; active [inner]."""
    inner = active.shape[0]
    for i in range(inner):
        active[i] = gates[i] * gates[inner + i] / (_ONE + fast_exp(-gates[i]))
