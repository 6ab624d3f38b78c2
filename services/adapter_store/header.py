"""The header of a safetensors file: which tensors there are, and where.

The `safetensors` library checks the format (sizes, offsets without gaps or overlaps, shapes that fit); what it lets
pass or says in a way that does not help is looked at here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from paceline.errors import InvalidArgumentError
from services.common.lora.config import UNPICKLED, WEIGHTS_NAME, unique_object

_LENGTH_BYTES = 8
_PICKLE = f"is a pickle, which is never read: {UNPICKLED}"
_SIGNATURES = {
    b"PK\x03\x04": "is a zip archive; a renamed .bin? That " + _PICKLE,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"\x1f\x8b": "is a gzip archive, not safetensors",
}


class TensorInfo(NamedTuple):
    """A tensor of a file."""

    dtype: str
    """As the format names it, e.g. "BF16"."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""
    num_bytes: int


def read_header(path: Path, max_header_bytes: int) -> dict[str, TensorInfo]:
    """The tensors of a file by name. Raises InvalidArgumentError when it is not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(_LENGTH_BYTES)
        length = int.from_bytes(begin, "little")
        if len(begin) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            # Only a length that does not fit says that this is another format: one that fits may begin with any bytes.
            for signature, problem in _SIGNATURES.items():
                if begin.startswith(signature):
                    raise _wrong(problem)
            raise _wrong(f"its header should have {length} bytes, the whole file has {size}")
        if length > max_header_bytes:
            raise _wrong(f"its header has {length} bytes; adapters of this model take at most {max_header_bytes}")
        header = _parse(file.read(length))
    try:
        with safe_open(path, framework="numpy") as checked:
            names = set(checked.keys())
    except (SafetensorError, OSError) as error:
        raise _wrong(f"is not safetensors: {error}") from error
    header.pop("__metadata__", None)
    if names != header.keys():
        raise _wrong("its header can be read in two ways")
    first = _LENGTH_BYTES + length
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), first + start, end - start)
    return tensors


def _parse(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data, object_pairs_hook=unique_object)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _wrong("its header is not a JSON object")
    return header


def _wrong(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(WEIGHTS_NAME, problem)
