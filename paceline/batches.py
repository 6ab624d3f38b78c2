"""What a client sends of a batch: the lines of a file, piece by piece."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paceline.v1 import batch_pb2

PIECE_BYTES = 256 << 10
Lines = bytes | str | Path | Iterable[bytes]
"""JSON Lines: themselves, the path of their file, or pieces of them."""


def pieces(lines: Lines) -> Iterator[bytes]:
    """The bytes of lines, in pieces of a bounded size. Raises OSError for a file that cannot be read."""
    if isinstance(lines, Path):
        with lines.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
        return
    if isinstance(lines, str):
        lines = lines.encode()
    for whole in [lines] if isinstance(lines, bytes) else lines:
        for start in range(0, len(whole), PIECE_BYTES):
            yield whole[start : start + PIECE_BYTES]


async def requests(options: Mapping[str, Any], lines: Lines) -> AsyncIterator[batch_pb2.CreateBatchRequest]:
    """The messages of an upload."""
    yield batch_pb2.CreateBatchRequest(options=batch_pb2.BatchOptions(**options))
    for piece in pieces(lines):
        yield batch_pb2.CreateBatchRequest(data=piece)
