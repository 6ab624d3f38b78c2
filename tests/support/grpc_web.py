"""A browser's end of gRPC-Web: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md."""

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx2

_TRAILERS = 0x80


class Frame(NamedTuple):
    """A message, or at the end the trailers."""

    message: bytes
    trailers: dict[str, str]


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


async def frames(pieces: AsyncIterator[bytes]) -> AsyncIterator[Frame]:
    """What an answer's body holds, as it comes."""
    data = b""
    async for piece in pieces:
        data += piece
        while len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[1:5]):
            end = 5 + int.from_bytes(data[1:5])
            kind, body, data = data[0], data[5:end], data[end:]
            if kind & _TRAILERS:
                lines = [line.partition(":") for line in body.decode().splitlines() if line]
                yield Frame(b"", {name.strip(): value.strip() for name, _, value in lines})
            else:
                yield Frame(body, {})
    assert not data, "an answer ends behind a frame"


def browser(address: str, ca: Path, *, http2: bool = False) -> httpx2.AsyncClient:
    """A client that takes the certificate of the edge."""
    import ssl

    return httpx2.AsyncClient(
        base_url=f"https://{address}", verify=ssl.create_default_context(cafile=str(ca)), http2=http2, timeout=30
    )


HEADERS = {
    "content-type": "application/grpc-web+proto",
    "x-grpc-web": "1",
    "origin": "https://app.example",
    "accept": "application/grpc-web+proto",
}
