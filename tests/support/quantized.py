"""Tiny checkpoints of quantized weights, written as their kinds are laid out; no package of theirs is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.tiny import save_tiny

_BLOCK = 32
_LARGEST = 448.0
"""The largest number of 8 bits (e4m3)."""
Tensors = dict[str, torch.Tensor]


def save_quantized(folder: Path, kind: str) -> str:
    """Saves a random model with weights of a kind into the folder and returns its path."""
    architecture, options, quantization, quantize = KINDS[kind]
    save_tiny(folder, architecture, **options)
    file, tensors = folder / "model.safetensors", {}
    for name, weight in load_file(folder / "model.safetensors").items():
        quantized = quantize(name, weight)
        tensors |= quantized or {name: weight.bfloat16()}
    save_file(tensors, file, {"format": "pt"})
    set_quantization(folder, quantization)
    return str(folder)


def set_quantization(folder: Path, quantization: dict[str, Any]) -> None:
    """Has a model's configuration say how it is quantized, and what else is in bfloat16."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "dtype": "bfloat16", "quantization_config": quantization}
    path.write_text(json.dumps(config))


def _by_block(name: str, weight: torch.Tensor) -> Tensors | None:
    if not name.endswith("proj.weight"):
        return None
    rows, columns = weight.shape
    blocks = weight.reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    scales = blocks.abs().amax((1, 3)) / _LARGEST
    small = (blocks / scales[:, None, :, None]).reshape(rows, columns)
    return {name: small.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}


def _by_tensor(name: str, weight: torch.Tensor) -> Tensors | None:
    if not name.endswith("proj.weight"):
        return None
    scale = weight.abs().max() / _LARGEST
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}


def _with_exponents(name: str, weight: torch.Tensor) -> Tensors | None:
    """One power of two a block of a row (OCP Microscaling Formats, MX)."""
    if not name.endswith("proj.weight"):
        return None
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // _BLOCK, _BLOCK)
    exponents = torch.ceil(torch.log2(blocks.abs().amax(2) / _LARGEST))
    small = (blocks / exponents.exp2()[..., None]).reshape(rows, columns)
    return {name: small.to(torch.float8_e4m3fn), f"{name}_scale_inv": (exponents + 127).to(torch.uint8)}


def _of_four_bits(name: str, weight: torch.Tensor) -> Tensors | None:
    """Experts of two numbers a byte; the bits are random."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return None
    experts, columns, rows = weight.shape
    generator = torch.Generator().manual_seed(len(name))
    blocks, scales = (experts, rows, columns // _BLOCK, _BLOCK // 2), (experts, rows, columns // _BLOCK)
    return {
        f"{name}_blocks": torch.randint(0, 256, blocks, dtype=torch.uint8, generator=generator),
        f"{name}_scales": torch.randint(122, 126, scales, dtype=torch.uint8, generator=generator),
    }


def _ternary(name: str, weight: torch.Tensor) -> Tensors | None:
    """Four of -1, 0 and 1 a byte."""
    if not name.endswith("proj.weight"):
        return None
    scale = weight.abs().mean()
    digits = ((weight / scale).round().clamp(-1, 1) + 1).to(torch.uint8).reshape(4, weight.shape[0] // 4, -1)
    packed = digits[0] | digits[1] << 2 | digits[2] << 4 | digits[3] << 6
    return {name: packed, f"{name}_scale": scale.reshape(1)}


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_EXPERTS: dict[str, object] = {
    "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip
_GPT_OSS: dict[str, object] = {
    "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, object], dict[str, Any], Callable[[str, torch.Tensor], Tensors | None]]] = {
    "fp8 by block": ("llama", {}, {**_FP8, "weight_block_size": [_BLOCK, _BLOCK]}, _by_block),
    "fp8 by tensor": ("llama", {}, {**_FP8, "weight_block_size": None}, _by_tensor),
    "fp8 experts": ("qwen3_moe", _EXPERTS, {**_FP8, "weight_block_size": [_BLOCK, _BLOCK]}, _by_block),
    "mxfp8": (
        "llama", {}, {"quant_method": "mxfp8", "weight_block_size": [1, _BLOCK], "scale_fmt": "ue8m0"}, _with_exponents,
    ),
    "mxfp4": ("gpt_oss", _GPT_OSS, {"quant_method": "mxfp4", "modules_to_not_convert": []}, _of_four_bits),
    "bitnet": ("bitnet", {"num_key_value_heads": 2}, {"quant_method": "bitnet", "linear_class": "bitlinear"}, _ternary),
}  # fmt: skip
"""By kind: the architecture, options of its configuration, what that says of the quantization, and what is stored in a
weight's place; None where it stays as it is."""
