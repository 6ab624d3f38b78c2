"""The target: the package's file, converted."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from services.engine.gguf_conversion import convert
from services.local.model_files import gguf_of

NAME = "smollm2"


def target_folder() -> Path:
    """The folder that transformers loads. Raises LaunchError, in a sentence, where `paceline get` was not run."""
    file = gguf_of(NAME)
    if file is None:
        raise ValueError(f"{NAME} is no name of a package's model")
    return convert(file)


def device_here() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_target(folder: Path, device: torch.device) -> LlamaForCausalLM:
    """The target, in bfloat16 on a GPU and in float32 on a CPU."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    target: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    target.train(False).requires_grad_(False)
    target.to(device)  # type: ignore[arg-type]
    return target
