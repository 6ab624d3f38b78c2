"""Puts models into the forms that the peers take, by their own tools and with their own interpreters."""

import os
import subprocess
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_GGUF = Path("src") / "vendor" / "llama.cpp" / "gguf-py"


def to_openvino(peers: Path, model: str, folder: Path, *, int8: bool) -> str:
    """Exports a model by optimum-intel into a folder, unless it is there: 16 bits a weight, or 8. Returns its path."""
    made = folder / "openvino-int8" if int8 else folder / "openvino"
    if not (made / "openvino_model.xml").exists():
        command = [str(peers / "openvino" / "bin" / "optimum-cli"), "export", "openvino", "--model", model]
        command += ["--task", "text-generation-with-past", "--weight-format", "int8" if int8 else "fp16", str(made)]
        _run(command)
    return str(made)


def to_gguf(peers: Path, model: str, folder: Path, *, int8: bool) -> str:
    """Writes a model as GGUF into a folder, unless it is there. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / ("int8.gguf" if int8 else "bfloat16.gguf")
    if not made.exists():
        command = [str(peers / "llama" / "bin" / "python"), str(_HERE / "gguf_file.py"), model, str(made)]
        _run([*command, *(["--int8"] if int8 else [])], PYTHONPATH=str(peers / _GGUF))
    return str(made)


def _run(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
