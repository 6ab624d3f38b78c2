"""Where the target is: the package's file, converted."""

from pathlib import Path

from services.engine.gguf_conversion import convert
from services.local.model_files import gguf_of

NAME = "smollm2"


def target_folder() -> Path:
    """The folder that transformers loads. Raises LaunchError, in a sentence, where `paceline get` was not run."""
    file = gguf_of(NAME)
    if file is None:
        raise ValueError(f"{NAME} is no name of a package's model")
    return convert(file)
