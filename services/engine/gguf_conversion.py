"""Converts a GGUF file into a folder that everything here loads, by the reader of `transformers`: once, whole or not.

`python -m services.engine.gguf_conversion FILE` prints the folder, or why there is none, and then ends with 1. Weights
are kept in float32, which is exactly what the file's blocks mean; config.json names the type that the file has, or
bfloat16 for blocks, so that who does not ask for more serves them so.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from services.common.checkpoint import CheckpointError
from services.common.gguf import check_gguf, conversion_of, is_converted
from services.common.gguf_header import Header
from services.engine.made_folder import make_once, print_made

_BYTES = 4
"""Of a weight in the folder."""
_MORE_BYTES = 64 << 20
"""Room for all that is no weight."""
_HEAD_DIM = frozenset({"attention.key_length", "attention.value_length", "rope.dimension_count"})
"""What files repeat that is the width of a head, unless a model is of another kind."""
_NO_PART = frozenset({"vocab_size", "rope.scaling.original_context_length", "rope.scaling.finetuned"})
"""What files say that by itself changes no number."""
_DTYPES = (({"F32"}, "float32"), ({"F32", "F16"}, "float16"))
"""By what a file's tensors consist of: norms are in float32 everywhere."""
_NOTHING = (0, 0.0, False, "", "none")


def convert(file: Path) -> Path:
    """The folder into which a file is converted, now or before. Raises CheckpointError in a sentence."""
    try:
        folder = conversion_of(file)
        if is_converted(folder):
            return folder
        header = check_gguf(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error

    def write(made: Path) -> None:
        with _read_once():
            _write(file, header, made)

    make_once(folder, write, _BYTES * header.num_weights + _MORE_BYTES, str(file), "converted")
    return folder


def _write(file: Path, header: Header, folder: Path) -> None:
    where, options = str(file.resolve().parent), {"gguf_file": file.name}
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(where, dtype=torch.float32, **options)
    _check_whole(file, header, model)
    # What is saved is no GGUF any more.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, **options).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = next((dtype for kinds, dtype in _DTYPES if header.kinds <= kinds), "bfloat16")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _check_whole(file: Path, header: Header, model: Any) -> None:
    """Raises CheckpointError when the file says something of the model that was not read: it would be another model."""
    if header.num_weights != (num_read := model.num_parameters()):
        raise CheckpointError(
            f"{file} has {header.num_weights:,} weights, of which the installed transformers reads {num_read:,}: "
            "take the checkpoint in safetensors that it was made from"
        )
    names = (header.architecture, model.config.model_type)
    tables: list[Any] = [GGUF_CONFIG_MAPPING[name] for name in names if name in GGUF_CONFIG_MAPPING]
    taken = {key for table in tables for key in table}
    for name, value in header.values.items():
        prefix, _, key = name.partition(".")
        if not tables or prefix != header.architecture or key in taken or key in _NO_PART:
            continue
        if value in _NOTHING or (key in _HEAD_DIM and value == getattr(model.config, "head_dim", None)):
            continue
        raise CheckpointError(
            f"{file} says {name} = {value}, which the installed transformers does not read from GGUF: "
            "take the checkpoint in safetensors that it was made from"
        )


@contextmanager
def _read_once() -> Iterator[None]:
    """Has `transformers`, which opens a file for its configuration, its weights and its tokenizer, read it once, and
    look up the names of tensors once instead of once a module.
    """
    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, slow in before.items():
            setattr(gguf, name, lru_cache(maxsize=1)(slow))
        yield
    finally:
        for name, slow in before.items():
            setattr(gguf, name, slow)


def main() -> None:
    """Converts the file that the command line names."""
    print_made(lambda: convert(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
