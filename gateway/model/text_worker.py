"""Makes tokens of long texts, and texts of many tokens, in a process of its own.

The library lets go of the interpreter's lock while it works on a text, but neither while it hands out a million ids nor
while the C library returns what it took: each holds all streams of a gateway up for a tenth of a second.
"""

import os
import struct
import subprocess
import sys
import weakref
from array import array
from collections.abc import Sequence
from typing import IO, Final

from tokenizers import Tokenizer

from gateway import heap
from paceline.errors import UnavailableError

_HEADER: Final = struct.Struct("<BqQ")
"""What is asked for, or whether it was done; a number that belongs to it; how many bytes follow."""
_ENCODE, _ENCODE_SPECIAL, _DECODE = range(3)
_ANY: Final = -1
_NICENESS = 10
_PIECE = 1 << 14
_RETRY_AFTER_SECONDS = 1.0


class TextWorker:
    """The process, and whoever has it work: one thread at a time."""

    def __init__(self, tokenizer: str) -> None:
        """`tokenizer` is the file of a tokenizer, as JSON. The process ends with this object, or with this process."""
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[bytes] | None = None

    def encode(self, text: str, *, add_special_tokens: bool, most: int | None) -> "tuple[int, array[int]]":
        """How many tokens a text has, and their ids unless they are more than `most`."""
        kind = _ENCODE_SPECIAL if add_special_tokens else _ENCODE
        num_tokens, found = self._ask(kind, _ANY if most is None else most, text.encode())
        ids = array("I")
        ids.frombytes(found)
        return num_tokens, ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        packed = array("I")
        for start in range(0, len(token_ids), _PIECE):  # Others have their turn of the interpreter's lock in between.
            packed.extend(token_ids[start : start + _PIECE])
        return self._ask(_DECODE, _ANY, packed.tobytes())[1].decode()

    def _ask(self, kind: int, number: int, data: bytes) -> tuple[int, bytes]:
        """What the process answers; one that has died is followed by another, once. Raises UnavailableError."""
        for _ in range(2):
            try:
                process = self._process or self._start()
                _write(process.stdin, kind, number, data)
                return _read(process.stdout)[1:]
            except OSError:
                self._process = None
        raise UnavailableError("long texts cannot be worked on for now", _RETRY_AFTER_SECONDS)

    def _start(self) -> "subprocess.Popen[bytes]":
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        weakref.finalize(self, _end, process)
        _write(process.stdin, 0, 0, self._tokenizer.encode())
        return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def _write(stream: IO[bytes] | None, kind: int, number: int, data: bytes) -> None:
    if stream is None:
        raise OSError("the process has no pipe")
    stream.write(_HEADER.pack(kind, number, len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes] | None) -> tuple[int, int, bytes]:
    """What the other end wrote. Raises OSError when it has ended."""
    header = b"" if stream is None else stream.read(_HEADER.size)
    if stream is None or len(header) < _HEADER.size:
        raise OSError("the process has ended")
    kind, number, size = _HEADER.unpack(header)
    data = stream.read(size)
    if len(data) < size:
        raise OSError("the process has ended")
    return kind, number, data


def _work(tokenizer: Tokenizer, kind: int, most: int, data: bytes) -> tuple[int, bytes]:
    if kind == _DECODE:
        ids = array("I")
        ids.frombytes(data)
        (text,) = tokenizer.decode_batch([ids.tolist()], skip_special_tokens=True)
        return len(ids), str(text).encode()
    (encoding,) = tokenizer.encode_batch_fast([data.decode()], add_special_tokens=kind == _ENCODE_SPECIAL)
    fits = most == _ANY or len(encoding) <= most
    return len(encoding), array("I", encoding.ids).tobytes() if fits else b""


def main() -> None:
    """Works until nobody asks any more."""
    heap.keep_little()
    os.nice(_NICENESS)
    tokenizer = Tokenizer.from_str(_read(sys.stdin.buffer)[2].decode())
    while True:
        try:
            request = _read(sys.stdin.buffer)
        except OSError:
            return
        _write(sys.stdout.buffer, 0, *_work(tokenizer, *request))
        del request
        heap.give_back()


if __name__ == "__main__":
    main()
