"""Everything that has to be right about an adapter before anybody can see it. Reads files in pieces, in a thread."""

from collections.abc import Set
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.errors import FieldViolation, InvalidArgumentError
from paceline.internal.v1 import adapter_store_pb2
from services.adapter_store.header import TensorInfo, read_header
from services.adapter_store.targets import targeted
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, parse_lora_config, tensor_names

_MAX_VIOLATIONS = 20
_MAX_SHOWN = 120
_MAX_DESCRIPTION = 240
_HEADER_BYTES, _HEADER_BYTES_A_MODULE = 64 << 10, 1 << 10
"""A parsed header takes many times its size in memory."""
_PIECE_BYTES = 4 << 20
_BITS = {
    "F32": (np.uint32, 0x7F800000, 0x7FFFFFFF),
    "F16": (np.uint16, 0x7C00, 0x7FFF),
    "BF16": (np.uint16, 0x7F80, 0x7FFF),
}
"""Of each type that is taken: the integer as wide, the bits of the exponent, and all but the sign."""


class Checked(NamedTuple):
    """What is known of an adapter that is in order."""

    rank: int
    """The largest of all layers."""
    target_modules: list[str]
    """Last parts of the names of the layers that it changes, ordered."""


def check_adapter(
    config: bytes, weights: Path, base: adapter_store_pb2.AdapterBase, max_rank: int, *, ignore_base_model: bool
) -> Checked:
    """Looks at both files. Raises InvalidArgumentError, which names file, tensor and what was expected."""
    parsed = parse_lora_config(config, max_rank)
    if not ignore_base_model:
        _check_base(parsed.base_model, base.model)
    shapes = {module.name: (module.in_features, module.out_features) for module in base.modules}
    wanted = targeted(parsed, list(shapes))
    tensors = read_header(weights, _HEADER_BYTES + _HEADER_BYTES_A_MODULE * len(shapes))
    expected: dict[str, tuple[int, int]] = {}
    for module in wanted:
        in_features, out_features = shapes[module]
        down, up = tensor_names(module)
        rank = parsed.rank_of(module)
        expected[down], expected[up] = (rank, in_features), (out_features, rank)
    _raise_if_any(_tensor_violations(tensors, expected, shapes))
    _check_numbers(weights, tensors, wanted)
    rank = max((parsed.rank_of(module) for module in wanted), default=parsed.rank)
    return Checked(rank, sorted({module.rpartition(".")[2] for module in wanted}))


def _check_base(named: str | None, model: str) -> None:
    ours, theirs = (name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (model, named or ""))
    if ours != theirs:
        said = f"is {named!r}" if named else "is not set"
        raise InvalidArgumentError(
            f"{CONFIG_NAME}:base_model_name_or_path",
            f"{said}, and the model here is {model!r}; if the weights are the same, upload with ignore_base_model",
        )


def _tensor_violations(
    tensors: dict[str, TensorInfo], expected: dict[str, tuple[int, int]], modules: dict[str, tuple[int, int]]
) -> list[str]:
    known = {tensor for module in modules for tensor in tensor_names(module)}
    problems = [
        f"{name} is missing; it must be {list(shape)}" for name, shape in expected.items() if name not in tensors
    ]
    for name, info in tensors.items():
        shape = expected.get(name)
        if shape is None:
            problems.append(_unexpected(name, known))
        elif info.shape != shape:
            swapped = "; A and B seem to be swapped" if info.shape == shape[::-1] else ""
            problems.append(f"{name} must be {list(shape)}, got {list(info.shape)}{swapped}")
        elif info.dtype not in _BITS:
            problems.append(f"{name} must be F32, F16 or BF16, got {info.dtype}")
    return problems


def _unexpected(name: str, known: Set[str]) -> str:
    shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."
    if name in known:
        return f"{shown} is not of a layer that target_modules names"
    if ".lm_head." in name or "embed" in name:
        return f"{shown}: adapters of the embedding and of the output layer are not supported"
    return f"{shown} is no lora_A.weight or lora_B.weight of a layer of the model that adapters may change"


def _check_numbers(weights: Path, tensors: dict[str, TensorInfo], modules: list[str]) -> None:
    """Raises for numbers that are not finite, and for an adapter that adds nothing anywhere."""
    changes = False
    problems: list[str] = []
    with weights.open("rb") as file:
        for module in modules:
            anything = True
            for name in tensor_names(module):
                finite, nonzero = _look_at(file, tensors[name])
                anything = anything and nonzero
                if not finite:
                    problems.append(f"{name} holds numbers that are not finite")
            changes = changes or anything
    _raise_if_any(problems)
    if not changes:
        raise InvalidArgumentError(WEIGHTS_NAME, "all of A or all of B is zero in every layer: it would change nothing")


def _look_at(file: BinaryIO, info: TensorInfo) -> tuple[bool, bool]:
    """Whether all numbers of a tensor are finite, and whether any is not zero."""
    integer, exponent, magnitude = _BITS[info.dtype]
    file.seek(info.start)
    left, finite, nonzero = info.num_bytes, True, False
    while left:
        bits: NDArray[np.unsignedinteger] = np.frombuffer(file.read(min(left, _PIECE_BYTES)), integer)
        left -= bits.nbytes
        finite = finite and not bool(((bits & exponent) == exponent).any())
        nonzero = nonzero or bool((bits & magnitude).any())
    return finite, nonzero


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        shown = problems[:_MAX_VIOLATIONS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        first, *more = (FieldViolation(WEIGHTS_NAME, problem[:_MAX_DESCRIPTION]) for problem in shown)
        raise InvalidArgumentError(*first, *more)
