"""Makes tokens of long texts, and texts of many tokens, in a process of its own.

The library lets go of the interpreter's lock while it works on a text, but neither while it hands out a million ids nor
while the C library returns what it took: each holds all streams of a gateway up for a tenth of a second.
"""

import multiprocessing
import os
import subprocess
import sys
import weakref
from array import array
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from tokenizers import Tokenizer

from gateway import heap
from paceline.errors import UnavailableError

_NICENESS = 10
_PIECE = 1 << 14
_RETRY_AFTER_SECONDS = 1.0


class TextWorker:
    """The process, and whoever has it work: one thread at a time."""

    def __init__(self, tokenizer: str) -> None:
        """`tokenizer` is the file of a tokenizer, as JSON. The process ends with this object, or with this process."""
        self._tokenizer = tokenizer
        self._process: _Process | None = None

    def encode(self, text: str, *, add_special_tokens: bool, most: int | None) -> "tuple[int, array[int]]":
        """How many tokens a text has, and their ids unless they are more than `most`."""
        num_tokens, found = self._ask("encode", text.encode(), add_special_tokens, most)
        ids = array("I")
        ids.frombytes(found)
        return num_tokens, ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        packed = array("I")
        for start in range(0, len(token_ids), _PIECE):  # Others have their turn of the interpreter's lock in between.
            packed.extend(token_ids[start : start + _PIECE])
        return self._ask("decode", packed.tobytes())[1].decode()

    def _ask(self, *request: object) -> tuple[int, bytes]:
        """What the process answers; one that has died is followed by another, once. Raises UnavailableError."""
        for _ in range(2):
            try:
                if self._process is None:
                    self._process = _Process(self._tokenizer)
                return self._process.ask(request)
            except (OSError, EOFError):
                self._process = None
        raise UnavailableError("long texts cannot be worked on for now", _RETRY_AFTER_SECONDS)


class _Process:
    """One that runs. Raises OSError or EOFError when it has ended, or cannot be started."""

    def __init__(self, tokenizer: str) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,
            )
        self.pid = process.pid
        weakref.finalize(self, _end, process)
        self._connection.send(tokenizer)

    def ask(self, request: tuple[object, ...]) -> tuple[int, bytes]:
        """What it answers."""
        self._connection.send(request)
        answer: tuple[int, bytes] = self._connection.recv()
        return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _encode(tokenizer: Tokenizer, text: bytes, add_special_tokens: bool, most: int | None) -> tuple[int, bytes]:
    (encoding,) = tokenizer.encode_batch_fast([text.decode()], add_special_tokens=add_special_tokens)
    fits = most is None or len(encoding) <= most
    return len(encoding), array("I", encoding.ids).tobytes() if fits else b""


def _decode(tokenizer: Tokenizer, packed: bytes) -> tuple[int, bytes]:
    ids = array("I")
    ids.frombytes(packed)
    (text,) = tokenizer.decode_batch([ids.tolist()], skip_special_tokens=True)
    return len(ids), str(text).encode()


def main() -> None:
    """Works until whoever asks has ended."""
    heap.keep_little()
    os.nice(_NICENESS)
    connection: Connection = Connection(int(sys.argv[1]))
    works: dict[str, Callable[..., tuple[int, bytes]]] = {"encode": _encode, "decode": _decode}
    try:
        tokenizer = Tokenizer.from_str(connection.recv())
        while True:
            kind, *request = connection.recv()
            connection.send(works[kind](tokenizer, *request))
            del request
            heap.give_back()
    except (OSError, EOFError):
        return


if __name__ == "__main__":
    main()
