"""The shapes of the pair. The draft has less than a tenth of the target's parameters, all counted, and few layers."""

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from models.tokenizer import VOCAB_SIZE

MAX_LENGTH = 2048
END_OF_TEXT_ID = 0


def new_target(device: torch.device) -> LlamaForCausalLM:
    """A randomly initialised target: 20.7 million parameters."""
    return _new_model(device, hidden_size=512, intermediate_size=1280, num_layers=6, num_heads=8, num_kv_heads=4)


def new_draft(device: torch.device) -> LlamaForCausalLM:
    """A randomly initialised draft: 1.9 million parameters."""
    return _new_model(device, hidden_size=160, intermediate_size=448, num_layers=2, num_heads=5, num_kv_heads=5)


def num_parameters(model: LlamaForCausalLM) -> int:
    """Every parameter once; the tied embedding is one."""
    return sum(parameter.numel() for parameter in model.parameters())


def _new_model(
    device: torch.device,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig.from_model_config(config)
    model.generation_config.pad_token_id = END_OF_TEXT_ID
    nn.Module.to(model, device)
    return model
