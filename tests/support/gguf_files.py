"""GGUF files of tiny models, written by llama.cpp's own library."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM

from support.tiny import save_tiny

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_TOKENS = [*sorted(ByteLevel.alphabet()), "re"]
"""One a byte, and one that is two."""


def write_gguf(
    file: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_1,
    *,
    architecture: str = "llama",
    more: dict[str, float | int | str] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Path:
    """Writes a random Llama whose matrices are of this kind, with a tokenizer of bytes and a chat template.

    `more` is said of it besides, `tensors` lie in the file besides.
    """
    model = AutoModelForCausalLM.from_pretrained(save_tiny(file.parent / f"{file.stem}-made", vocab_size=len(_TOKENS)))
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(file.stem)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (more or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    _add_tokenizer(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        to = names.get_name(name, try_suffixes=(".weight",))
        _add(writer, to, parameter.detach().numpy(), heads.get(name.split(".")[-2]), kind)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(_TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(_TOKENS))
    writer.add_token_merges(["r e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _add(
    writer: gguf.GGUFWriter, name: str, values: Any, num_heads: int | None, kind: gguf.GGMLQuantizationType
) -> None:
    if num_heads is not None:
        # Rotary embedding turns neighbouring elements there, and elements half a head apart in transformers.
        values = values.reshape(num_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    if values.ndim == 1:
        writer.add_tensor(name, values.astype(np.float32))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
