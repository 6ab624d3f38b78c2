"""A target that computes the shipped target's function at the cost of a model seven times its size.

Every MLP gets more neurons, whose output weights are zero, and layers are added that write nothing to the residual
stream. The tokens are the shipped target's, so acceptance is that of real text; the time of a step is that of reading
all the weights. Figures measured with it say "heavy target".
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

NUM_LAYERS = 14
INTERMEDIATE_SIZE = 6656
_SEED = 0


def build_heavy(shipped: str, folder: Path) -> str:
    """Builds the heavy target into a folder, unless it is there, and returns the folder's path."""
    if (folder / "config.json").exists():
        return str(folder)
    small = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.bfloat16)
    config = LlamaConfig(**small.config.to_dict())
    config.num_hidden_layers = NUM_LAYERS
    config.intermediate_size = INTERMEDIATE_SIZE
    torch.manual_seed(_SEED)
    heavy = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        heavy.model.embed_tokens.weight.copy_(small.model.embed_tokens.weight)
        heavy.model.norm.weight.copy_(small.model.norm.weight)
        for index, layer in enumerate(heavy.model.layers):
            if index >= small.config.num_hidden_layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
                continue
            source = small.model.layers[index]
            width = small.config.intermediate_size
            layer.self_attn.load_state_dict(source.self_attn.state_dict())
            layer.input_layernorm.load_state_dict(source.input_layernorm.state_dict())
            layer.post_attention_layernorm.load_state_dict(source.post_attention_layernorm.state_dict())
            layer.mlp.gate_proj.weight[:width] = source.mlp.gate_proj.weight
            layer.mlp.up_proj.weight[:width] = source.mlp.up_proj.weight
            layer.mlp.down_proj.weight.zero_()
            layer.mlp.down_proj.weight[:, :width] = source.mlp.down_proj.weight
    heavy.generation_config = small.generation_config
    heavy.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shipped).save_pretrained(folder)
    return str(folder)
