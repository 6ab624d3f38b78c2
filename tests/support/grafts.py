"""Grafts of tiny models."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.common.graft import DESCRIPTION, FORMAT, HEAD_TOKENS, SCALE, WEIGHTS
from services.engine.graft_assembly import rounded
from support.tiny import save_tiny, save_tokenizer

HEAD = [2, 5, 9, 31, 77, 120, 121, 200]


def save_target(folder: Path) -> Path:
    """A tiny target with a tokenizer."""
    save_tiny(folder)
    save_tokenizer(folder)
    return folder


def save_graft(folder: Path, target: Path, **said: object) -> Path:
    """A draft of one layer for a tiny target, of which `said` says something else than the truth."""
    other = save_tiny(folder / "made", seed=3, num_hidden_layers=1, tie_word_embeddings=False)
    from transformers import AutoModelForCausalLM

    weights = dict(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).state_dict())
    del weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = weights["lm_head.weight"][HEAD]
    parts = {HEAD_TOKENS: torch.tensor(HEAD, dtype=torch.int32)}
    for name, weight in weights.items():
        if weight.ndim == 2:
            parts[name], parts[name + SCALE] = rounded(weight)
        else:
            parts[name] = weight
    graft = folder / "graft"
    graft.mkdir()
    save_file(parts, graft / WEIGHTS)
    config = json.loads((target / "config.json").read_text())
    true = {key: config[key] for key in ("model_type", "hidden_size", "vocab_size")}
    described = {"format": FORMAT, **true, "num_hidden_layers": 1, **said}
    (graft / DESCRIPTION).write_text(json.dumps(described))
    return graft
