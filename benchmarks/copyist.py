"""A target that copies, set by hand: what follows the longest earlier occurrence of its last eight tokens.

Large models copy when they are asked to edit a file; the shipped target, with 21 million parameters, does not. This one
has the two attention layers that make copying ("induction heads", Olsson et al. 2022, arXiv 2209.11895): heads of the
first bring each of the eight tokens before to a position, a head of the second attends to where the same eight stood
before and hands on the token there. All other weights cost what the heavy target's cost, and do nothing.
"""

import math
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from benchmarks.heavy import INTERMEDIATE_SIZE, NUM_LAYERS

_HIDDEN = 512
_HEAD = 128
_PAIRS = _HEAD // 2
_MATCHED = 8
"""Tokens that have to be the same; one head each."""
_BITS = 8
"""Of a token's short code, by which tokens are compared."""
_LONG = 64
"""Of its long code, by which a token is told."""
_CURRENT, _OUT, _SHORT, _BEFORE = 0, _LONG, 2 * _LONG, 2 * _LONG + _BITS
"""Where they lie in the residual stream; `_BEFORE` + k * `_BITS` holds the short code of the k-th token before."""
_CONSTANT = _BEFORE + _BITS * _MATCHED
_THETA = 1e12
"""Rotary base: the first pairs of a head turn fast and tell distances, the last hardly turn and tell contents."""
_FAST_PAIRS = range(8)
_SLOW_PAIRS = range(_PAIRS - _BITS * _MATCHED // 2, _PAIRS)
_SHARPNESS = 20.0
"""Attention logits between the right position and its neighbours."""
_SEED = 0


def build_copyist(shipped: str, folder: Path, *, num_layers: int = NUM_LAYERS) -> str:
    """Builds it into a folder, unless it is there, and returns the folder's path. `shipped` gives the tokenizer."""
    if (folder / "config.json").exists():
        return str(folder)
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=_MATCHED,
        num_key_value_heads=_MATCHED,
        head_dim=_HEAD,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(_SEED)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _set(model)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _set(model: LlamaForCausalLM) -> None:
    signs = torch.randint(0, 2, (model.config.vocab_size, _LONG + _BITS)) * 2.0 - 1
    long, short = signs[:, :_LONG], signs[:, _LONG:]
    embedding = model.model.embed_tokens.weight.zero_()
    embedding[:, _CURRENT : _CURRENT + _LONG] = long
    embedding[:, _SHORT : _SHORT + _BITS] = short
    embedding[:, _CONSTANT] = 8.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for projection in (first.q_proj, first.k_proj, first.v_proj, second.q_proj, second.k_proj, second.v_proj):
        projection.weight.zero_()
    size = _LONG + _BITS + 64.0
    _look_back(first, math.sqrt(size / _HIDDEN))
    _match(second, math.sqrt((size + _BITS * _MATCHED) / _HIDDEN))
    model.lm_head.weight.zero_()
    model.lm_head.weight[:, _OUT : _OUT + _LONG] = long


def _look_back(attention: LlamaAttention, rms: float) -> None:
    """Head k brings the short code of the token k + 1 positions before. `rms` is what the norm divides by."""
    frequencies = [_THETA ** (-pair / _PAIRS) for pair in range(_PAIRS)]
    gap = sum(1 - math.cos(frequencies[pair]) for pair in _FAST_PAIRS)
    scale = rms / 8.0 * math.sqrt(_SHARPNESS / gap * math.sqrt(_HEAD))
    for head in range(_MATCHED):
        base = head * _HEAD
        for pair in _FAST_PAIRS:
            angle = frequencies[pair] * (head + 1)
            attention.q_proj.weight[base + pair, _CONSTANT] = scale
            attention.k_proj.weight[base + pair, _CONSTANT] = scale * math.cos(angle)
            attention.k_proj.weight[base + pair + _PAIRS, _CONSTANT] = scale * math.sin(angle)
        for bit in range(_BITS):
            attention.v_proj.weight[base + bit, _SHORT + bit] = rms
            attention.o_proj.weight[_BEFORE + head * _BITS + bit, base + bit] = 1.0


def _match(attention: LlamaAttention, rms: float) -> None:
    """The first head finds where the last tokens stood before the position, and hands on the token that is there."""
    scale = rms * math.sqrt(_SHARPNESS / 4 * math.sqrt(_HEAD))
    dims = [dim for pair in _SLOW_PAIRS for dim in (pair, pair + _PAIRS)]
    for index in range(_MATCHED):
        for bit in range(_BITS):
            dim = dims[index * _BITS + bit]
            latest = _SHORT if index == 0 else _BEFORE + (index - 1) * _BITS
            attention.q_proj.weight[dim, latest + bit] = scale
            attention.k_proj.weight[dim, _BEFORE + index * _BITS + bit] = scale
    for bit in range(_LONG):
        attention.v_proj.weight[bit, _CURRENT + bit] = rms
        attention.o_proj.weight[_OUT + bit, bit] = 1.0
