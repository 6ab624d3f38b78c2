"""The forward of a small model over a few rows as one compiled loop, for drafts on the CPU.

A draft of a few million parameters spends its step not on arithmetic but on calling operations whose code and weights
the target has just pushed out of the caches. Here the whole forward is one function, its weights are 8-bit integers
with one scale an output, and nothing is padded or gathered. What it computes depends on no other row, yet it rounds
otherwise than the forward that computes prompts: good enough for a guess, never used for a target.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from services.engine.attention_layers import AttentionLayer
from services.engine.cpu.decoder import FusedDecoder
from services.engine.cpu.kernels import FAST, Floats, Ints, rms_norm, rotate_and_store
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.row_attention import attend
from services.engine.kv_cache import KVCache

MAX_PARAMETERS = 16_000_000
MAX_ROWS = 32
_HEAD_NORMS = ("q_norm", "k_norm")
_ONE = np.float32(1.0)


class _Quantized(NamedTuple):
    """Weights [..., out, in] as integers -127..127, each output [..., out] times its scale."""

    weight: NDArray[np.int8]
    scale: Floats


class SmallDecoder:
    """Shares embedding, angles and KV cache with the fused decoder of the same model. Used by one thread."""

    def __init__(self, model: Any, decoder: FusedDecoder, scaling: float, kv_cache: KVCache) -> None:
        layers = model.model.layers
        self._decoder = decoder
        self._scaling = np.float32(scaling)
        self._block_size = kv_cache.block_size
        self._keys: Floats = kv_cache.all_keys.numpy()  # type: ignore[union-attr]
        self._values: Floats = kv_cache.all_values.numpy()  # type: ignore[union-attr]
        self._joint = _quantize([_weights(layer.self_attn, "q_proj", "k_proj", "v_proj") for layer in layers])
        self._out = _quantize([_weights(layer.self_attn, "o_proj") for layer in layers])
        self._gate_up = _quantize([_weights(layer.mlp, "gate_proj", "up_proj") for layer in layers])
        self._down = _quantize([_weights(layer.mlp, "down_proj") for layer in layers])
        self._head = _quantize([model.lm_head.weight])
        self._norms = np.stack(
            [[layer.input_layernorm.weight, layer.post_attention_layernorm.weight] for layer in layers]
        )
        self._head_norms = np.stack([_head_norms(layer.self_attn) for layer in layers])

    def forward(self, plan: RowPlan, token_ids: list[int], wanted: list[int]) -> torch.Tensor:
        """Logits [wanted, vocab] for flat rows of tokens, whose KV is stored."""
        hidden = self._decoder.embed(token_ids).numpy()
        _forward(
            hidden, plan.positions, plan.slots, plan.owners, plan.tables, self._block_size,
            *self._decoder.angles(int(plan.positions.max())), self._decoder.eps, self._scaling, self._norms,
            self._head_norms, *self._joint, *self._out, *self._gate_up, *self._down, self._keys, self._values,
        )  # fmt: skip
        last = hidden[wanted]
        logits = np.empty((len(wanted), self._head.weight.shape[1]), np.float32)
        normed = np.empty_like(last)
        rms_norm(last, self._decoder.final_norm, self._decoder.eps, normed)
        _product(normed, self._head.weight[0], self._head.scale[0], logits)
        return torch.from_numpy(logits)


def takes(model: Any, layers: list[AttentionLayer]) -> bool:
    """Whether a model that the fused decoder takes is small and plain enough: one scaling, no windows, no biases."""
    biases = any(name.endswith(".bias") for name, _ in model.named_parameters())
    alike = len(set(layers)) == 1 and layers[0].window is None
    return model.num_parameters() <= MAX_PARAMETERS and alike and not biases


def _weights(parent: Any, *names: str) -> torch.Tensor:
    return torch.cat([getattr(parent, name).weight for name in names])


def _head_norms(attention: Any) -> list[Floats]:
    none = np.empty(0, np.float32)
    return [getattr(attention, name).weight.numpy() if hasattr(attention, name) else none for name in _HEAD_NORMS]


def _quantize(weights: list[torch.Tensor]) -> _Quantized:
    stacked = torch.stack(weights).float()
    scale = stacked.abs().amax(dim=-1).clamp_min(1e-12) / 127
    return _Quantized((stacked / scale.unsqueeze(-1)).round().to(torch.int8).numpy(), scale.numpy())


@njit(nogil=True, cache=True, fastmath=FAST)
def _product(x: Floats, weight: NDArray[np.int8], scale: Floats, out: Floats) -> None:
    """out = x @ (weight * scale).T. x [rows, in], weight [out, in], scale [out], out [rows, out]."""
    for o in range(weight.shape[0]):
        for row in range(x.shape[0]):
            total = np.float32(0.0)
            for i in range(weight.shape[1]):
                total += np.float32(weight[o, i]) * x[row, i]
            out[row, o] = total * scale[o]


@njit(nogil=True, cache=True, fastmath=FAST)
def _forward(
    hidden: Floats, positions: Ints, slots: Ints, owners: Ints, tables: Ints, block_size: int, cos: Floats, sin: Floats,
    eps: np.float32, scaling: np.float32, norms: Floats, head_norms: Floats, joint: Any, joint_scale: Any, out: Any,
    out_scale: Any, gate_up: Any, gate_up_scale: Any, down: Any, down_scale: Any, all_keys: Floats, all_values: Floats,
) -> None:  # fmt: skip
    """Runs rows [rows, width] through all layers in place."""
    rows, width = hidden.shape
    kv_heads, dim = all_keys.shape[2], all_keys.shape[3]
    heads = joint.shape[1] // dim - 2 * kv_heads
    inner = down.shape[2]
    normed = np.empty((rows, width), np.float32)
    mixed = np.empty((rows, joint.shape[1]), np.float32)
    queries = np.empty((rows, heads, dim), np.float32)
    attended = np.empty((rows, heads, dim), np.float32)
    gates = np.empty((rows, 2 * inner), np.float32)
    active = np.empty((rows, inner), np.float32)
    delta = np.empty((rows, width), np.float32)
    for layer in range(joint.shape[0]):
        keys, values = all_keys[layer], all_values[layer]
        rms_norm(hidden, norms[layer, 0], eps, normed)
        _product(normed, joint[layer], joint_scale[layer], mixed)
        rotate_and_store(
            mixed, head_norms[layer, 0], head_norms[layer, 1], eps, cos, sin, positions, slots, queries, keys, values
        )
        attend(
            queries, rows, 0, heads, tables, owners, positions, block_size, keys, values, scaling, 1 << 40, attended
        )  # fmt: skip
        _product(attended.reshape((rows, heads * dim)), out[layer], out_scale[layer], delta)
        hidden += delta
        rms_norm(hidden, norms[layer, 1], eps, normed)
        _product(normed, gate_up[layer], gate_up_scale[layer], gates)
        for row in range(rows):
            for i in range(inner):
                gate = gates[row, i]
                active[row, i] = gate / (_ONE + np.exp(-gate)) * gates[row, inner + i]
        _product(active, down[layer], down_scale[layer], delta)
        hidden += delta
