"""A decoder step on the CPU as few large operations: four products and one attention a layer, kernels in between.

It computes what `transformers` computes for the commonest shape of model: embedding, layers of (RMSNorm, rotary
attention, RMSNorm, gated SiLU MLP) with residuals, RMSNorm, output layer (Llama, Mistral, Qwen and their like).
Nothing is trusted because of a name: a model is taken only when its modules are exactly these and its logits on random
tokens agree with those of its own forward. Every other model runs through its own forward.
"""

import copy
from collections import abc
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding, silu

from services.engine.adapter import Target
from services.engine.attention_layers import AttentionLayer
from services.engine.cpu import kernels
from services.engine.cpu.kernels import Floats
from services.engine.cpu.linear import pack
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.row_attention import RowAttention
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora, Product, product_of

_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_PRODUCTS = 4
"""A layer is computed as so many products."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Packed weights of a layer."""

    input_norm: Floats
    query_key_value: nn.Module
    query_norm: Floats
    key_norm: Floats
    output: nn.Module
    mlp_norm: Floats
    gate_up: nn.Module
    down: nn.Module
    scaling: float
    window: int | None


class FusedDecoder:
    """The forward of one model. Used by one thread."""

    def __init__(self, model: Any, weights: torch.dtype, layers: list[AttentionLayer]) -> None:
        body = model.model
        half = weights in (torch.bfloat16, torch.float16)
        self._embedding = body.embed_tokens.weight.to(weights)
        self._layers = [_fuse_layer(*pair, half=half) for pair in zip(body.layers, layers, strict=True)]
        self.final_norm = body.norm.weight.numpy()
        self._output = pack(model.lm_head.weight, model.lm_head.bias, half=half)
        self.eps = np.float32(_eps(body.norm))
        self.width = 2 * body.layers[0].mlp.down_proj.in_features
        """Elements of the widest row that an element-wise operation sees."""
        self._num_heads = model.config.num_attention_heads
        self._rotary = copy.deepcopy(body.rotary_emb)  # The model is let go of; longer texts need more angles.
        self._cos, self._sin = self._angles(0, 1024)

    def forward(
        self, plan: RowPlan, kv_cache: KVCache, token_ids: list[int], wanted: list[int], lora: Lora | None
    ) -> torch.Tensor:
        """Logits [wanted, vocab] for flat rows of tokens; their KV goes where the plan says.

        `lora` adds what the adapters of rows add; None when no row has any.
        """
        angles = self.angles(int(plan.positions.max()))
        attention = RowAttention(plan, kv_cache, self._num_heads)
        hidden = self.embed(token_ids)
        normed = torch.empty_like(hidden)
        rows = hidden.numpy(), normed.numpy()
        for index, layer in enumerate(self._layers):
            add = partial(_add, lora, _PRODUCTS * index)
            kernels.rms_norm(rows[0], layer.input_norm, self.eps, rows[1])
            kernels.rotate_and_store(
                add(0, normed, layer.query_key_value(normed)).numpy(), layer.query_norm, layer.key_norm, self.eps,
                *angles, plan.positions, plan.slots, attention.queries, kv_cache.keys[index].numpy(),
                kv_cache.values[index].numpy(),
            )  # fmt: skip
            attended = attention.run(index, layer.scaling, layer.window)
            hidden += add(1, attended, layer.output(attended))
            kernels.rms_norm(rows[0], layer.mlp_norm, self.eps, rows[1])
            gate, up = add(2, normed, layer.gate_up(normed)).chunk(2, dim=-1)
            active = silu(gate).mul_(up)
            hidden += add(3, active, layer.down(active))
        last = hidden[wanted]
        normed = torch.empty_like(last)
        kernels.rms_norm(last.numpy(), self.final_norm, self.eps, normed.numpy())
        logits: torch.Tensor = self._output(normed)
        return logits

    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Embeddings [tokens, width] in float32."""
        return embedding(torch.tensor(token_ids), self._embedding).float()

    def angles(self, position: int) -> tuple[Floats, Floats]:
        """Cosines and sines [positions, rotated dimensions] of all positions up to this one, at least."""
        while position >= len(self._cos):
            cos, sin = self._angles(len(self._cos), 2 * len(self._cos))
            self._cos, self._sin = np.concatenate([self._cos, cos]), np.concatenate([self._sin, sin])
        return self._cos, self._sin

    def _angles(self, start: int, end: int) -> tuple[Floats, Floats]:
        """Cosines and sines [end - start, rotated dimensions] of positions from `start` on."""
        cos, sin = self._rotary(torch.zeros(1), torch.arange(start, end).unsqueeze(0))
        return cos[0].float().contiguous().numpy(), sin[0].float().contiguous().numpy()


def fused_products(targets: abc.Mapping[str, Target], num_layers: int) -> list[Product]:
    """What the fused forward computes as one: four products a layer, in the order in which it adds to them."""
    products: list[Product] = []
    for index in range(num_layers):
        attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        products += [
            product_of(*(targets[f"{attention}.{name}_proj"] for name in "qkv")),
            product_of(targets[f"{attention}.o_proj"]),
            product_of(targets[f"{mlp}.gate_proj"], targets[f"{mlp}.up_proj"]),
            product_of(targets[f"{mlp}.down_proj"]),
        ]
    return products


def _add(lora: Lora | None, first: int, product: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if lora is not None:
        lora.add(first + product, x, y)
    return y


def fuse(model: Any, weights: torch.dtype, layers: list[AttentionLayer]) -> FusedDecoder | None:
    """The fused forward of a float32 model on the CPU, or None when its modules are not what it takes."""
    body: Any = getattr(model, "model", None)
    head = getattr(model, "lm_head", None)
    if type(head) is not nn.Linear or _children(body) != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        return None
    if type(body.embed_tokens) is not nn.Embedding or getattr(body.rotary_emb, "rope_type", "") not in _STATIC_ROPE:
        return None
    norms = [body.norm]
    for layer in body.layers:
        attention: Any = getattr(layer, "self_attn", None)
        mlp: Any = getattr(layer, "mlp", None)
        if _children(layer) != _LAYER or _children(mlp) != _MLP or _children(attention) - _HEAD_NORMS != _ATTENTION:
            return None
        parts = [getattr(attention, name) for name in _ATTENTION]
        parts += [getattr(mlp, name) for name in _MLP - {"act_fn"}]
        if any(type(part) is not nn.Linear for part in parts) or not _is_silu(mlp.act_fn):
            return None
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(attention, name) for name in _HEAD_NORMS & _children(attention)]
    if len({_eps(norm) for norm in norms}) != 1:
        return None
    return FusedDecoder(model, weights, layers)


def _fuse_layer(layer: Any, asked: AttentionLayer, *, half: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    none = np.empty(0, np.float32)
    return _Layer(
        input_norm=layer.input_layernorm.weight.numpy(),
        query_key_value=_join([attention.q_proj, attention.k_proj, attention.v_proj], half=half),
        query_norm=attention.q_norm.weight.numpy() if hasattr(attention, "q_norm") else none,
        key_norm=attention.k_norm.weight.numpy() if hasattr(attention, "k_norm") else none,
        output=pack(attention.o_proj.weight, attention.o_proj.bias, half=half),
        mlp_norm=layer.post_attention_layernorm.weight.numpy(),
        gate_up=_join([mlp.gate_proj, mlp.up_proj], half=half),
        down=pack(mlp.down_proj.weight, mlp.down_proj.bias, half=half),
        scaling=asked.scaling,
        window=asked.window,
    )


def _join(parts: list[nn.Linear], *, half: bool) -> nn.Module:
    """Linear layers that read the same input, as one."""
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([torch.zeros(p.out_features) if p.bias is None else p.bias for p in parts])
    return pack(torch.cat([part.weight for part in parts]), bias, half=half)


def _children(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()} if isinstance(module, nn.Module) else set()


def _is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-8, 8, 65)
    return bool(torch.allclose(activation(x), silu(x)))


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", -1.0)))
