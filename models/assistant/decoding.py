"""The target, a token of thousands of texts at a time: what writing in bulk takes on one GPU, without a server."""

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

_ROUND = 64
"""Keys are read up to a multiple of this."""


class Decoder:
    """Keys and values of all texts lie in arrays of a fixed size; every text is at a place of its own."""

    def __init__(self, target: LlamaForCausalLM, rows: int, length: int) -> None:
        """For so many texts of so many tokens at most."""
        config, weight = target.config, target.lm_head.weight
        self._target = target
        self._rows = torch.arange(rows, device=weight.device)
        self._places = torch.arange(length, device=weight.device)
        self._dim = config.hidden_size // config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        shape = (rows, self._num_kv_heads, length, self._dim)
        self._keys, self._values = (
            [weight.new_zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2)
        )
        cos, sin = target.model.rotary_emb(weight, self._places[None])
        self._angles = cos[0], sin[0]

    @torch.inference_mode()
    def step(self, token_ids: Tensor, places: Tensor, longest: int) -> Tensor:
        """Logits [texts, vocab] behind one more token of each text, at these places, none of them at `longest`."""
        end = min(len(self._places), -(-longest // _ROUND) * _ROUND)
        hidden_keys = (self._places[:end] > places[:, None])[:, None, None]
        angles = self._angles[0][places, None], self._angles[1][places, None]
        x = self._target.model.embed_tokens(token_ids)
        for number, layer in enumerate(self._target.model.layers):
            attention = layer.self_attn
            h = _normed(layer.input_layernorm, x)
            q, k, v = (
                each(h).view(len(x), -1, 1, self._dim)
                for each in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = apply_rotary_pos_emb(q, k, *angles)
            keys, values = self._keys[number], self._values[number]
            keys[self._rows, :, places] = k[:, :, 0]
            values[self._rows, :, places] = v[:, :, 0]
            # The heads of a group read the same keys: one product for all of them.
            grouped = q.view(len(x), self._num_kv_heads, -1, self._dim) * self._dim**-0.5
            scores = (grouped @ keys[:, :, :end].transpose(2, 3)).float().masked_fill_(hidden_keys, -torch.inf)
            read = scores.softmax(-1).to(x.dtype) @ values[:, :, :end]
            x = x + attention.o_proj(read.reshape(len(x), -1))
            h = _normed(layer.post_attention_layernorm, x)
            x = x + layer.mlp.down_proj(silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
        return linear(_normed(self._target.model.norm, x), self._target.lm_head.weight)


def _normed(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
