"""Small CPU kernels between the large products of a decoder step, compiled once by numba and kept on disk.

Each does in one pass what costs half a dozen tensor operations otherwise, whose dispatch takes longer than their work
at a few rows. Every kernel treats one row after another with the same instructions, so a row's bits depend on that row.
All arrays are C-contiguous float32 unless said otherwise.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FAST = {"reassoc", "contract", "nsz", "arcp"}
_ONE = np.float32(1.0)


@njit(nogil=True, cache=True, fastmath=FAST)
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


@njit(nogil=True, cache=True, fastmath=FAST)
def rotate_and_store(
    joint: Floats,
    query_weight: Floats,
    key_weight: Floats,
    eps: np.float32,
    cos: Floats,
    sin: Floats,
    positions: Ints,
    slots: Ints,
    queries: Floats,
    keys: Floats,
    values: Floats,
) -> None:
    """Takes joint query, key and value rows apart: queries rotated, rotated keys and values into the cache.

    joint [rows, (heads + 2 * kv_heads) * dim]; weights [dim], or [0] where heads are not normalised; cos and sin
    [positions, rotated]; positions and slots [rows]; queries [rows, heads, dim]; keys and
    values [slots, kv_heads, dim].
    """
    kv_heads, dim = keys.shape[1], keys.shape[2]
    heads = queries.shape[1]
    for row in range(joint.shape[0]):
        c, s = cos[positions[row]], sin[positions[row]]
        for head in range(heads):
            source = joint[row, head * dim : (head + 1) * dim]
            rotate_head(source, query_weight, eps, c, s, queries[row, head])
        slot = slots[row]
        for head in range(kv_heads):
            at = (heads + head) * dim
            rotate_head(joint[row, at : at + dim], key_weight, eps, c, s, keys[slot, head])
            at += kv_heads * dim
            for i in range(dim):
                values[slot, head, i] = joint[row, at + i]
