"""Makes a checkpoint that everything here loads of a graft and its target: once, whole or not.

`python -m services.engine.graft_assembly GRAFT TARGET` prints the folder, or why there is none, and then ends with 1.
Weights are kept in bfloat16, whatever the target's are: a draft is only ever help.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.common.checkpoint import CheckpointError
from services.common.graft import HEAD_TOKENS, SCALE, SHARED, WEIGHTS, assembly_of, check_graft
from services.engine.made_folder import make_once, print_made
from services.engine.reduced_head import FILE

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_MORE_BYTES = 64 << 20
"""Room for all that is neither embedding nor output layer."""
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab.*", "merges.txt")


def assemble(graft: Path, target: Path) -> Path:
    """The folder of a graft on its target, made now or before. Raises CheckpointError in a sentence."""
    said = check_graft(graft)
    config = json.loads((target / "config.json").read_text())
    if any(config.get(key) != said[key] for key in SHARED):
        raise CheckpointError(f"the draft {graft} is not for {target}: it was made for another model")
    folder = assembly_of(graft, target)
    num_bytes = 2 * 2 * int(said["vocab_size"]) * int(said["hidden_size"]) + _MORE_BYTES
    config |= {"num_hidden_layers": said["num_hidden_layers"], "tie_word_embeddings": False, "dtype": "bfloat16"}
    make_once(folder, lambda made: _write(graft, target, config, made), num_bytes, str(graft), "put together")
    return folder


def _write(graft: Path, target: Path, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    weights = load_file(graft / WEIGHTS)
    head_tokens = weights.pop(HEAD_TOKENS).long()
    whole = {name: _in_full(weights, name).bfloat16() for name in weights if not name.endswith(SCALE)}
    embedding = _embedding(target).bfloat16()
    # Whoever does not know of the list beside it reads an output layer of all tokens.
    whole[_HEAD] = embedding.index_copy(0, head_tokens, whole[_HEAD])
    whole[_EMBEDDING] = embedding
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / FILE).write_text(json.dumps(head_tokens.tolist()))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in {path for pattern in _TOKENIZER for path in target.glob(pattern)}:
        shutil.copy(file, folder / file.name)
    if (target / "generation_config.json").exists():
        shutil.copy(target / "generation_config.json", folder)


def _in_full(weights: dict[str, Tensor], name: str) -> Tensor:
    """A weight, of 8 bits times its scales or as it is."""
    scale = weights.get(name + SCALE)
    return weights[name] if scale is None else weights[name].float() * scale.unsqueeze(1)


def _embedding(target: Path) -> Tensor:
    """The target's embedding [vocab, width]. Raises CheckpointError where it is not to be found."""
    for file in sorted(target.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if _EMBEDDING in opened.keys():  # noqa: SIM118
                found: Tensor = opened.get_tensor(_EMBEDDING)
                return found
    raise CheckpointError(f"{target} has no {_EMBEDDING}, which its draft takes from it")


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [outputs, inputs] in 8 bits, and what the integers of each output are to be multiplied by."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale.unsqueeze(1)).round().to(torch.int8), scale.float()


def main() -> None:
    """Puts together what the command line names."""
    graft, target = map(Path, sys.argv[1:3])
    print_made(lambda: assemble(graft, target))


if __name__ == "__main__":
    main()
