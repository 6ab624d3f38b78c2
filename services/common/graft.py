"""Grafts: drafts that are shipped without what they share with their target, which is on the machine already.

A draft that is some of its target's own layers, with its embedding and an output layer over some tokens alone (see
`services.engine.reduced_head`), is shipped as a folder of two files:

    graft.json         format (2); model_type, hidden_size, num_hidden_layers, vocab_size: what the target has to have;
                       layers: the target's layers that the draft has, in order; scales: what o_proj and down_proj of
                       each are multiplied by; about: a sentence for people
    graft.safetensors  by the draft's own names for its layers: MODULE.up [outputs, rank] and MODULE.down [rank,
                       inputs], whose product is added to the matrix of a module, after it was scaled; norms, in place
                       of the target's; lm_head.weight [outputs, inputs]; head_tokens in int32 [outputs]: the tokens of
                       lm_head's outputs, ascending. Matrices are in int8, each row times its element of NAME.scale

`services.engine.graft_assembly` makes a whole checkpoint of a graft and its target, in the user's cache folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from services.common.checkpoint import CheckpointError
from services.common.folders import cache_folder

DESCRIPTION, WEIGHTS = "graft.json", "graft.safetensors"
SCALE = ".scale"
HEAD_TOKENS = "head_tokens"
FORMAT = 2
SHARED = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
"""What graft and target have to have in common."""
_LENGTH_BYTES = 8


def is_graft(name: str) -> bool:
    """Whether a name is that of a folder with a graft."""
    return (Path(name).expanduser() / DESCRIPTION).is_file()


def check_graft(folder: Path) -> dict[str, Any]:
    """What graft.json says. Raises CheckpointError for a graft that is not whole, or newer than this."""
    try:
        said = json.loads((folder / DESCRIPTION).read_text())
        newest = said["format"] == FORMAT
        if newest and not all(key in said for key in (*SHARED, "layers", "scales")):
            raise KeyError("what it is for")
        is_whole = newest and _is_whole(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no draft that can be read: {error}") from error
    if not newest:
        raise CheckpointError(f"{folder} is a draft of format {said['format']}; this version reads format {FORMAT}")
    if not is_whole:
        raise CheckpointError(f"{folder / WEIGHTS} is not whole: get it again")
    checked: dict[str, Any] = said
    return checked


def assembly_of(graft: Path, target: Path) -> Path:
    """The folder in which graft and target are put together, or were."""
    hasher = blake3(f"{FORMAT};{target.resolve()}".encode())
    for file in sorted(target.glob("*.safetensors")):
        stat = file.stat()
        hasher.update(f"{file.name};{stat.st_size};{stat.st_mtime_ns};".encode())
    for name in (DESCRIPTION, WEIGHTS):
        hasher.update((graft / name).read_bytes())
    return cache_folder() / "grafts" / f"{graft.resolve().name}-{hasher.hexdigest()[:24]}"


def _is_whole(file: Path) -> bool:
    """Whether a file of safetensors ends where its header says. Raises ValueError for another."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if length > file.stat().st_size:
            return False
        header: Mapping[str, Any] = json.loads(opened.read(length))
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return _LENGTH_BYTES + length + max(ends, default=0) == file.stat().st_size
