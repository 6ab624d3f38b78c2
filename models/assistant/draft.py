"""The draft's shape: some of the target's own layers, its embedding, and a head over its commonest tokens alone.

What is trained is little: what a matrix of low rank adds to each of the layers' matrices, the norms, and the head. All
else is the target's, is on the machine anyway, and is not shipped again. The head is what a step of a small model with
a large vocabulary costs most, and rare tokens are seldom guessed anyway (FR-Spec, Zhao et al. 2025, arXiv 2502.14856).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaForCausalLM

from models.assistant.chats import Chats

LAYERS = (0, 1, 11, 28, 29)
"""Layers of the target without any of which it says something else most."""
RANK = 160
HEAD_TOKENS = 10_240
_SCALED = ("self_attn.o_proj", "mlp.down_proj")
"""What a layer adds to a text goes through these."""
_FIRST = 4
"""The first tokens of a text are enormous in every layer, and say nothing of the others."""


class LowRank(nn.Module):
    """A matrix of the target's that stays as it is, and what is added to it."""

    weight: Tensor

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.register_buffer("weight", weight.float(), persistent=False)
        self.down = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] times both."""
        return linear(x, self.weight + self.up @ self.down)


class Draft(nn.Module):
    """The draft while it is trained."""

    head_ids: Tensor
    """The tokens that it may say, [head tokens]."""
    scales: Tensor
    """By how much what each layer adds is larger than in the target, [layers]."""

    def __init__(
        self,
        target: LlamaForCausalLM,
        head_ids: Tensor,
        scales: Tensor,
        layers: Sequence[int] = LAYERS,
        rank: int = RANK,
    ) -> None:
        """Begins from these layers of the target."""
        super().__init__()
        config = type(target.config)(**{**target.config.to_dict(), "num_hidden_layers": len(layers)})
        self.body = LlamaForCausalLM(config).model
        for layer, origin, scale in zip(self.body.layers, layers, scales, strict=True):
            layer.load_state_dict(target.model.layers[origin].state_dict())
            for name, module in list(layer.named_modules()):
                if isinstance(module, nn.Linear):
                    factor = float(scale) if name in _SCALED else 1.0
                    layer.set_submodule(name, LowRank(module.weight.detach() * factor, rank))
        self.body.norm.load_state_dict(target.model.norm.state_dict())
        self.body.embed_tokens = None
        self.embedding = target.model.embed_tokens.weight.detach()
        self.head = nn.Linear(config.hidden_size, len(head_ids), bias=False)
        self.register_buffer("head_ids", head_ids)
        self.register_buffer("scales", scales)
        with torch.no_grad():
            self.head.weight.copy_(self.embedding[head_ids])
        self.to(self.embedding.device)

    def forward(self, token_ids: Tensor, wanted: Tensor) -> Tensor:
        """Logits [wanted, head tokens] after those tokens of [texts, length] that a mask of that shape says."""
        hidden = self.body(inputs_embeds=self.embedding[token_ids], use_cache=False).last_hidden_state
        logits: Tensor = self.head(hidden[wanted])
        return logits


@torch.no_grad()
def matching_scales(target: LlamaForCausalLM, token_ids: Tensor, layers: Sequence[int] = LAYERS) -> Tensor:
    """What each layer's additions are to be multiplied by [layers], so that they are to the text as in the target.

    A text gets larger from layer to layer, and a layer adds what is to be seen beside all that was added before.
    """
    hidden = target.model(input_ids=token_ids, output_hidden_states=True, use_cache=False).hidden_states
    sizes = [float(each[:, _FIRST:].norm(dim=-1).mean()) for each in hidden]
    angles = target.model.rotary_emb(hidden[0], torch.arange(token_ids.shape[1], device=token_ids.device)[None])
    text, scales = hidden[0], list[float]()
    for origin in layers:
        scales.append(float(text[:, _FIRST:].norm(dim=-1).mean()) / sizes[origin])
        after = target.model.layers[origin](text, position_embeddings=angles, attention_mask=None)
        text = text + scales[-1] * (after - text)
    return torch.tensor(scales)


def commonest_tokens(chats: Chats, count: int, vocab_size: int) -> NDArray[np.int64]:
    """The tokens that the target wrote most often in answers, in order of their ids, [count].

    Of tokens that it never did, those with the lowest ids, which were merged first, fill up the rest.
    """
    counts = np.bincount(chats.token_ids[chats.is_answer], minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:count])
