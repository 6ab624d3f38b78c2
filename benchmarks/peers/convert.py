"""Puts a pair into the forms that the peers take, by their own tools and with their own interpreters."""

import os
import subprocess
from pathlib import Path

from benchmarks.peers.contenders import Models

_HERE = Path(__file__).resolve().parent
_GGUF = Path("src") / "vendor" / "llama.cpp" / "gguf-py"


def to_openvino(peers: Path, models: Models, folder: Path, *, int8: bool) -> Models:
    """Exports both models by optimum-intel, unless they are there: 16 bits a weight, or 8."""
    made = Models(str(folder / "target"), str(folder / "draft"))
    for source, target in zip(models, made, strict=True):
        if not (Path(target) / "openvino_model.xml").exists():
            command = [str(peers / "openvino" / "bin" / "optimum-cli"), "export", "openvino", "--model", source]
            command += ["--task", "text-generation-with-past", "--weight-format", "int8" if int8 else "fp16", target]
            _run(command)
    return made


def to_gguf(peers: Path, models: Models, folder: Path, *, int8: bool) -> Models:
    """Writes both models as GGUF, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Models(str(folder / "target.gguf"), str(folder / "draft.gguf"))
    for source, target in zip(models, made, strict=True):
        if not Path(target).exists():
            command = [str(peers / "llama" / "bin" / "python"), str(_HERE / "gguf_file.py"), source, target]
            _run([*command, *(["--int8"] if int8 else [])], PYTHONPATH=str(peers / _GGUF))
    return made


def _run(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)  # noqa: S603
