"""Writes what was trained as a graft, the format in which it ships: `python -m models.assistant.exporting`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.assistant.draft import LAYERS, RANK
from models.assistant.target import target_folder
from models.assistant.training import Shape
from services.common.graft import DESCRIPTION, FORMAT, HEAD_TOKENS, SCALE, SHARED, WEIGHTS
from services.engine.graft_assembly import rounded

ABOUT = "A draft for SmolLM2-135M-Instruct: some of its layers, retrained, and an output layer over common tokens."
_NAMES = {"body": "model", "head": "lm_head"}
"""What transformers calls the draft's parts."""


def export(weights: dict[str, Tensor], config: dict[str, Any], folder: Path, layers: Sequence[int] = LAYERS) -> None:
    """Writes the weights of a Draft, of a target with this configuration, as a graft."""
    weights = {name: weight.cpu() for name, weight in weights.items()}
    scales = weights.pop("scales").tolist()
    parts: dict[str, Tensor] = {HEAD_TOKENS: weights.pop("head_ids").to(torch.int32)}
    for trained, weight in weights.items():
        part, _, rest = trained.partition(".")
        name = f"{_NAMES[part]}.{rest}"
        if weight.ndim == 2:
            parts[name], parts[name + SCALE] = rounded(weight.float())
        else:
            parts[name] = weight.float().contiguous()
    shared = {key: config[key] for key in SHARED}
    said = {"format": FORMAT, "about": ABOUT, **shared, "layers": list(layers), "scales": scales}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(parts, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(said, indent=2) + "\n")


def main() -> None:
    """Exports a checkpoint of the trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(f"build/assistant/{Shape(LAYERS, RANK)}.pt"))
    parser.add_argument("--target", type=Path, help="folder; default: the one that `paceline get smollm2` fetched")
    parser.add_argument("--output", type=Path, default=Path("models/assistant/draft"), help="default: %(default)s")
    arguments = parser.parse_args()
    kept = torch.load(arguments.checkpoint, weights_only=True, map_location="cpu")
    config = json.loads(((arguments.target or target_folder()) / "config.json").read_text())
    export(kept["draft"], config, arguments.output, kept["layers"])


if __name__ == "__main__":
    main()
