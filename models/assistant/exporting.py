"""Writes what was trained as a graft, the format in which it ships: `python -m models.assistant.exporting`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.assistant.draft import LAYERS
from models.assistant.target import target_folder
from services.common.graft import DESCRIPTION, FORMAT, HEAD_TOKENS, SCALE, SHARED, WEIGHTS
from services.engine.graft_assembly import rounded

ABOUT = "A draft for SmolLM2-135M-Instruct: some of its layers, retrained, and an output layer over common tokens."
_NAMES = {"body": "model", "head": "lm_head"}
"""What transformers calls the draft's parts."""


def export(weights: dict[str, Tensor], config: dict[str, Any], folder: Path, layers: Sequence[int] = LAYERS) -> None:
    """Writes the weights of a Draft, of a target with this configuration, as a graft."""
    weights = dict(weights)
    scales = weights.pop("scales").tolist()
    parts: dict[str, Tensor] = {HEAD_TOKENS: weights.pop("head_ids").to(torch.int32)}
    for trained, weight in weights.items():
        part, _, rest = trained.partition(".")
        name = f"{_NAMES[part]}.{rest}"
        if part == "head":
            parts[name], parts[name + SCALE] = rounded(weight.float())
        else:
            parts[name] = weight.to(torch.bfloat16 if weight.ndim == 2 else torch.float32).contiguous()
    shared = {key: config[key] for key in SHARED}
    said = {"format": FORMAT, "about": ABOUT, **shared, "layers": list(layers), "scales": scales}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(parts, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(said, indent=2) + "\n")


def main() -> None:
    """Exports a checkpoint of the trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/assistant/draft.pt"))
    parser.add_argument("--output", type=Path, default=Path("models/assistant/draft"), help="default: %(default)s")
    arguments = parser.parse_args()
    weights = torch.load(arguments.checkpoint, weights_only=True)["draft"]
    export(weights, json.loads((target_folder() / "config.json").read_text()), arguments.output)


if __name__ == "__main__":
    main()
