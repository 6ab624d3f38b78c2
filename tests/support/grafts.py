"""Grafts of tiny models."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.common.graft import DESCRIPTION, FORMAT, HEAD_TOKENS, SCALE, SHARED, WEIGHTS
from services.engine.graft_assembly import rounded
from support.tiny import save_tiny, save_tokenizer

CHANGED = ("self_attn.q_proj", "self_attn.o_proj")
SCALES = 0.5
HEAD = [2, 5, 9, 31, 77, 120, 121, 200]


def save_target(folder: Path) -> Path:
    """A tiny target with a tokenizer."""
    save_tiny(folder)
    save_tokenizer(folder)
    return folder


def save_graft(folder: Path, target: Path, **said: object) -> Path:
    """A draft that is the second layer of a tiny target, changed a little, of which `said` says something untrue."""
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    config = json.loads((target / "config.json").read_text())
    width = config["hidden_size"]
    layer = "model.layers.0"
    parts = {HEAD_TOKENS: torch.tensor(HEAD, dtype=torch.int32), "model.norm.weight": 1 + some(width)}
    parts["lm_head.weight"], parts["lm_head.weight" + SCALE] = rounded(some(len(HEAD), width))
    parts[f"{layer}.input_layernorm.weight"] = 1 + some(width)
    for module in CHANGED:
        for name, matrix in (("up", some(width, 4)), ("down", some(4, width))):
            part = f"{layer}.{module}.{name}"
            parts[part], parts[part + SCALE] = rounded(matrix)
    graft = folder / "graft"
    graft.mkdir()
    save_file(parts, graft / WEIGHTS)
    true = {key: config[key] for key in SHARED}
    described = {"format": FORMAT, **true, "layers": [1], "scales": [SCALES], **said}
    (graft / DESCRIPTION).write_text(json.dumps(described))
    return graft
