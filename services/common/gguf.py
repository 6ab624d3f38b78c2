"""GGUF files (llama.cpp's format): which one a name means, whether it is whole, and where its conversion lies.

A file is converted once, into a folder of the user's cache that bears the file's digest: see
`services.engine.gguf_conversion`.
"""

from functools import lru_cache
from pathlib import Path

from blake3 import blake3

from services.common.checkpoint import CheckpointError, is_listed
from services.common.folders import cache_folder
from services.common.gguf_header import BrokenGgufError, Header, read_header

SUFFIX = ".gguf"
_LISTS = ("integrations/ggml.py", "integrations/gguf/gguf_config_mapping.py")
"""Files of `transformers` that list architectures."""
_VERSION = "1"
"""Another one has every file converted anew."""


def find_gguf(name: str) -> Path | None:
    """The GGUF file that a name means: the file itself, or the one in a folder that holds no checkpoint besides.

    Raises CheckpointError for a folder of several.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == SUFFIX:
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        shown = ", ".join(file.name for file in files)
        raise CheckpointError(f"{name} holds several GGUF files: name one of them ({shown})")
    return files[0] if files else None


def conversion_of(file: Path) -> Path:
    """The folder into which a file is converted, or was. The file's content is read, once while it stays the same."""
    stat = file.stat()
    return cache_folder() / "gguf" / f"{file.stem}-{_digest(file, stat.st_size, stat.st_mtime_ns)[:24]}"


@lru_cache
def _digest(file: Path, _size: int, _changed: int) -> str:
    hasher = blake3(_VERSION.encode())
    hasher.update_mmap(file)
    return hasher.hexdigest()


def is_converted(folder: Path) -> bool:
    """Whether a conversion is there; it appears whole or not at all."""
    return folder.is_dir()


def check_gguf(file: Path) -> Header:
    """What a file says of its model. Raises CheckpointError, in moments, for one that is not whole, or of a kind that
    cannot be converted.
    """
    try:
        header = read_header(file)
    except BrokenGgufError as error:
        raise CheckpointError(str(error)) from error
    if not is_listed(header.architecture, _LISTS):
        raise CheckpointError(
            f"{file} holds a model of type {header.architecture}, which the installed transformers does not read from "
            "GGUF: take the checkpoint in safetensors that it was made from"
        )
    return header
