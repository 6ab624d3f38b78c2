"""Tiny models of real architectures with random weights, saved as transformers saves them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 24},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 16, "sliding_window_pattern": 2},
    "phi3": {"num_key_value_heads": 4},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512, "n_inner": 96},
    "olmo2": {"num_key_value_heads": 2},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512, "n_inner": 96, "rotary_dim": 8},
    "openai-gpt": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
}


def save_tiny(folder: Path, architecture: str = "llama", seed: int = 0, **overrides: object) -> str:
    """Saves a random model of the architecture into the folder in float32 and returns the folder's path."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **{**_COMMON, **ARCHITECTURES.get(architecture, {}), **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    return str(folder)


def save_noisy(folder: Path, model: Path | str) -> str:
    """Saves a model with a little noise on its weights into a folder and returns the folder's path.

    As a draft of the model it is right often, and not always.
    """
    noisy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    noisy.save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """Saves a byte-level tokenizer of 256 tokens (one a byte) beside the model, with a plain chat template."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
