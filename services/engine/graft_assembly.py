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
_NORM = "model.norm.weight"
_HEAD = "lm_head.weight"
_SCALED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_BYTES = 2
"""Of a weight in the folder."""
_MORE_BYTES = 64 << 20
"""Room for all that is no weight, and for the target's other layers if a checkpoint is one file."""
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab.*", "merges.txt")


def assemble(graft: Path, target: Path) -> Path:
    """The folder of a graft on its target, made now or before. Raises CheckpointError in a sentence."""
    said = check_graft(graft)
    try:
        config = json.loads((target / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{target} is no folder of a model, which the draft {graft} is made of") from error
    if any(config.get(key) != said[key] for key in SHARED):
        raise CheckpointError(f"the draft {graft} is not for {target}: it was made for another model")
    folder = assembly_of(graft, target)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    config |= {"num_hidden_layers": len(said["layers"]), "tie_word_embeddings": False, "dtype": "bfloat16"}
    num_bytes = _BYTES * size // 4 + _MORE_BYTES
    make_once(folder, lambda made: _write(graft, target, said, config, made), num_bytes, str(graft), "put together")
    return folder


def _write(graft: Path, target: Path, said: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    own, base = _whole_numbers_made_real(load_file(graft / WEIGHTS)), _Target(target)
    whole: dict[str, Tensor] = {_NORM: own[_NORM]}
    for at, (origin, scale) in enumerate(zip(said["layers"], said["scales"], strict=True)):
        for name in base.names_of(origin):
            ours = f"model.layers.{at}.{name}"
            if ours in own:
                whole[ours] = own[ours]
                continue
            weight = base.read(f"model.layers.{origin}.{name}").float() * (scale if name in _SCALED else 1.0)
            module = ours.removesuffix(".weight")
            if f"{module}.up" in own:
                weight += own[f"{module}.up"] @ own[f"{module}.down"]
            whole[ours] = weight
    embedding, tokens = base.read(_EMBEDDING).float(), own[HEAD_TOKENS].long()
    # Whoever does not know of the list beside it reads an output layer of all tokens.
    whole[_HEAD] = embedding.index_copy(0, tokens, own[_HEAD])
    whole[_EMBEDDING] = embedding
    rounded_off = {name: weight.bfloat16().contiguous() for name, weight in whole.items()}
    save_file(rounded_off, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / FILE).write_text(json.dumps(tokens.tolist()))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in {path for pattern in (*_TOKENIZER, "generation_config.json") for path in target.glob(pattern)}:
        shutil.copy(file, folder / file.name)


class _Target:
    """The weights of a checkpoint, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self._files |= dict.fromkeys(opened.keys(), file)

    def names_of(self, layer: int) -> list[str]:
        """Names of the weights of a layer, within it."""
        prefix = f"model.layers.{layer}."
        return [name.removeprefix(prefix) for name in self._files if name.startswith(prefix)]

    def read(self, name: str) -> Tensor:
        """A weight. Raises CheckpointError where there is none of the name."""
        if name not in self._files:
            raise CheckpointError(f"{self._folder} has no {name}, which its draft takes from it")
        with safe_open(self._files[name], "pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found


def _whole_numbers_made_real(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a graft's file holds, matrices multiplied by their scales."""
    return {
        name: part.float() * parts[name + SCALE].unsqueeze(1) if name + SCALE in parts else part
        for name, part in parts.items()
    }


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
