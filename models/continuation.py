"""The target's own continuations of prompts: what the draft learns from, and what acceptance is measured on."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


def gumbel_noise(rows: int, num_tokens: int, vocab_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard Gumbel noise for each of `num_tokens` draws, [rows, vocab].

    The argmax of logits + noise is a sample at temperature 1.
    """
    for _ in range(num_tokens):
        yield -torch.empty(rows, vocab_size).exponential_(generator=generator).log()


@torch.inference_mode()
def continue_prompts(model: LlamaForCausalLM, prompts: Tensor, noise: Iterator[Tensor]) -> Tensor:
    """Append a token for every noise tensor, the argmax of logits + noise: [rows, prompt] to [rows, prompt + draws].

    Zeros are greedy decoding. The end-of-text token does not stop a row: the next document begins, as in training.
    """
    tokens, pending, cache = prompts, prompts, None
    for draw in noise:
        output = model(input_ids=pending, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        pending = (output.logits[:, -1] + draw.to(output.logits.device)).argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, pending], dim=1)
    return tokens
