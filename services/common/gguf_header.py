"""The header of a GGUF file: what it says of its model, and which tensors lie where.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads the same in seconds, element
by element; this takes moments, since words and numbers of a vocabulary are passed over.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How values of a type are packed; of the two others one is a string, the other an array."""
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32

Value = int | float | bool | str | None
"""None stands for an array."""


class BrokenGgufError(ValueError):
    """A file that is no GGUF file, not a whole one, or newer than what is known of them here."""


class _UnknownError(ValueError):
    """Something that no file has of which all is known."""


class Header(NamedTuple):
    """What lies before the tensors' data."""

    values: Mapping[str, Value]
    num_weights: int
    """Elements of all tensors."""
    kinds: frozenset[str]
    """What tensors consist of, as llama.cpp calls it: F32, F16, BF16, or kinds of blocks."""

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model."""
        return str(self.values.get("general.architecture", "unknown"))


def read_header(file: Path) -> Header:
    """Reads a file's header, and that its tensors are all there. Raises BrokenGgufError."""
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise BrokenGgufError(f"{file} is called a GGUF file and is none")
        try:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content).header()
        except _UnknownError as error:
            raise BrokenGgufError(f"{file} has {error}, which the installed gguf package does not know") from error
        except (struct.error, KeyError, ValueError, ArithmeticError, RecursionError) as error:
            raise BrokenGgufError(f"{file} is not a whole GGUF file: download it again") from error


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = len(_MAGIC)

    def header(self) -> Header:
        if (version := self._number("I")) not in _VERSIONS:
            raise _UnknownError(f"version {version} of the format")
        num_tensors, num_values = self._number("Q"), self._number("Q")
        values: dict[str, Value] = {}
        for _ in range(num_values):
            name = self._string()
            values[name] = self._value(self._number("I"))
        num_weights, kinds, end = self._tensors(num_tensors)
        alignment = int(values.get("general.alignment") or _ALIGNMENT)
        if -(-self._at // alignment) * alignment + end > len(self._content):
            raise ValueError("its end is missing")
        return Header(values, num_weights, frozenset(kinds))

    def _tensors(self, count: int) -> tuple[int, set[str], int]:
        """Elements and kinds of the tensors, and where the last one ends, counted from where the first begins."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        num_weights, kinds, end = 0, set(), 0
        for _ in range(count):
            self._string()
            num_elements = math.prod(self._number("Q") for _ in range(self._number("I")))
            number = self._number("I")
            try:
                kind = GGMLQuantizationType(number)
            except ValueError as error:
                raise _UnknownError(f"weights of kind {number}") from error
            of_block, bytes_of_block = GGML_QUANT_SIZES[kind]
            num_weights += num_elements
            kinds.add(kind.name)
            end = max(end, self._number("Q") + num_elements // of_block * bytes_of_block)
        return num_weights, kinds, end

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner in _NUMBERS:
            self._skip(count * struct.calcsize(_NUMBERS[inner]))
        else:
            for _ in range(count):
                self._skip(self._number("Q")) if inner == _STRING else self._value(inner)
        return None

    def _number(self, kind: str) -> int:
        (number,) = struct.unpack_from(f"<{kind}", self._content, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return number  # type: ignore[no-any-return]

    def _string(self) -> str:
        start = self._at + 8
        self._skip(self._number("Q"))
        return self._content[start : self._at].decode()

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._content):
            raise ValueError("its end is missing")
