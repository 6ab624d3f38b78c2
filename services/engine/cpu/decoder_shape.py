"""Which models the fused decoder takes: those whose modules are exactly what it computes, whatever their name."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu

from services.engine.attention_layers import AttentionLayer
from services.engine.cpu.llvm import LANES

_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"query_norm": "q_norm", "key_norm": "k_norm"}
"""Norms of single heads, which a model may have, and what it calls them."""
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def fits(model: Any, layers: list[AttentionLayer]) -> bool:
    """Whether a model is embedding, layers of (RMSNorm, rotary attention, RMSNorm, gated SiLU MLP), RMSNorm, output."""
    body: Any = getattr(model, "model", None)
    head = getattr(model, "lm_head", None)
    if type(head) is not nn.Linear or _children(body) != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        return False
    if type(body.embed_tokens) is not nn.Embedding or getattr(body.rotary_emb, "rope_type", "") not in _STATIC_ROPE:
        return False
    norms = [body.norm]
    for layer in body.layers:
        attention: Any = getattr(layer, "self_attn", None)
        mlp: Any = getattr(layer, "mlp", None)
        if (
            _children(layer) != _LAYER
            or _children(mlp) != _MLP
            or _children(attention) - set(HEAD_NORMS.values()) != _ATTENTION
        ):
            return False
        parts = [getattr(attention, name) for name in _ATTENTION]
        parts += [getattr(mlp, name) for name in _MLP - {"act_fn"}]
        if any(type(part) is not nn.Linear for part in parts) or not _is_silu(mlp.act_fn):
            return False
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(attention, name) for name in set(HEAD_NORMS.values()) & _children(attention)]
    if len({norm_eps(norm) for norm in norms}) != 1 or any(getattr(norm, "weight", None) is None for norm in norms):
        return False
    shapes = {layer.kv_shape for layer in layers}
    return len(shapes) == 1 and all(shape.key_dim == shape.value_dim and not shape.key_dim % LANES for shape in shapes)


def _children(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()} if isinstance(module, nn.Module) else set()


def _is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-8, 8, 65)
    return bool(torch.allclose(activation(x), silu(x)))


def norm_eps(norm: Any) -> float:
    """What a norm adds to the mean square; -1 when it does not say."""
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", -1.0)))
