"""Writes a Llama of a `transformers` folder as llama.cpp's GGUF, by llama.cpp's own library and nothing of Paceline.

    python gguf_file.py FOLDER FILE [--int8]

llama.cpp's converter knows tokenizers by a list of digests, and the pairs' own is not in it; here token ids go in and
come out, so that any vocabulary of the right size serves. Weights are bfloat16 as they are, or 8 bits (Q8_0).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import deserialize


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--int8", action="store_true")
    given = parser.parse_args()
    config = json.loads((given.folder / "config.json").read_text())
    writer = gguf.GGUFWriter(given.file, "llama")
    _describe(writer, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for path in sorted(given.folder.glob("*.safetensors")):
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            bits = np.frombuffer(tensor["data"], np.uint16).reshape(tensor["shape"])
            to = str(names.get_name(name, try_suffixes=(".weight",)))
            _add(writer, to, bits, heads.get(name.split(".")[-2]), int8=given.int8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _add(writer: Any, name: str, bits: Any, num_heads: int | None, *, int8: bool) -> None:
    if num_heads is not None:
        # Rotary embedding turns neighbouring elements here, and elements half a head apart in transformers.
        bits = bits.reshape(num_heads, 2, -1, bits.shape[1]).swapaxes(1, 2).reshape(bits.shape)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    if bits.ndim == 1:
        writer.add_tensor(name, values)
    elif int8:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


if __name__ == "__main__":
    main()
