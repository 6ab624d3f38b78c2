"""Bytes on a bare connection: no HTTP at all, HTTP/2 that breaks its rules (RFC 9113), floods, requests half sent."""

import random
from collections.abc import Callable, Sequence

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_END_STREAM, _END_HEADERS = 1, 4
_FLOOD = 2_000


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _headers(method: str) -> bytes:
    """The header block of a call, written without compression (RFC 7541, section 6.2.2)."""
    entries = (
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{method}".encode()), (b":authority", b"a")),
        *((b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"x-tenant", b"mallory")),
    )
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in entries)


def _begin(settings: bytes = b"") -> bytes:
    return _PREFACE + _frame(_SETTINGS, 0, 0, settings)


def _call(method: str, message: bytes, *, prefix: bytes | None = None, stream: int = 1, ends: bool = True) -> bytes:
    body = (b"\0" + len(message).to_bytes(4, "big") if prefix is None else prefix) + message[:16_000]
    data = _frame(_DATA, _END_STREAM if ends else 0, stream, body)
    return _frame(_HEADERS, _END_HEADERS, stream, _headers(method)) + data


def _garbage(rng: random.Random, _method: str, _message: bytes) -> Sequence[bytes]:
    return [rng.randbytes(rng.choice((1, 100, 10_000)))]


def _other_protocol(rng: random.Random, _method: str, _message: bytes) -> Sequence[bytes]:
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    return [rng.choice((tls, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-a\r\n", b"*1\r\n$4\r\nPING\r\n", b"\0"))]


def _random_frames(rng: random.Random, _method: str, _message: bytes) -> Sequence[bytes]:
    frames = [
        _frame(rng.randrange(12), rng.randrange(256), rng.randrange(4), rng.randbytes(rng.randrange(40)))
        for _ in range(20)
    ]
    return [_begin(), *frames]


def _half_sent(rng: random.Random, method: str, message: bytes) -> Sequence[bytes]:
    whole = _begin() + _call(method, message)
    return [whole[: rng.randrange(len(whole))]]


def _no_message(_rng: random.Random, method: str, _message: bytes) -> Sequence[bytes]:
    return [_begin() + _frame(_HEADERS, _END_HEADERS, 1, _headers(method))]


def _promises(rng: random.Random, method: str, message: bytes) -> Sequence[bytes]:
    """Messages that are said to be longer than they are, compressed, or neither."""
    prefix = rng.choice((b"\0\xff\xff\xff\xff", b"\0\x01\x00\x00\x00", b"\1\0\0\0\5", b"\xff\0\0\0\0", b"\0\0"))
    return [_begin() + _call(method, message, prefix=prefix, ends=rng.random() < 0.5)]


def _resets(_rng: random.Random, method: str, message: bytes) -> Sequence[bytes]:
    """Calls that are taken back at once, as in CVE-2023-44487."""
    calls = (
        _call(method, message, stream=stream) + _frame(_RESET, 0, stream, b"\0\0\0\x08")
        for stream in range(1, _FLOOD, 2)
    )
    return [_begin(), *calls]


def _flood(rng: random.Random, method: str, _message: bytes) -> Sequence[bytes]:
    """Frames that ask for an answer each, or for memory."""
    frame = rng.choice(
        (
            _frame(_PING, 0, 0, bytes(8)),
            _frame(_SETTINGS, 0, 0),
            _frame(_PRIORITY, 0, 3, bytes(5)),
            _frame(_WINDOW, 0, 0, b"\x7f\xff\xff\xff"),
            _frame(_CONTINUATION, 0, 1, b"\0\1a\1b"),
            _frame(_DATA, 0, 0, b""),
        )
    )
    return [_begin() + _frame(_HEADERS, 0, 1, _headers(method)), *[frame * 100] * (_FLOOD // 100)]


def _no_window(_rng: random.Random, method: str, message: bytes) -> Sequence[bytes]:
    """Calls whose answers may not be sent: the window of every stream is nothing."""
    calls = b"".join(_call(method, message, stream=stream) for stream in range(1, 16, 2))
    return [_begin(b"\0\4\0\0\0\0") + calls]


def _dribbles(rng: random.Random, method: str, message: bytes) -> Sequence[bytes]:
    """A call of which every byte comes alone."""
    whole = _begin() + _call(method, message)
    return [whole[at : at + 1] for at in range(min(len(whole), rng.randrange(1, 200)))]


_KINDS: tuple[Callable[[random.Random, str, bytes], Sequence[bytes]], ...] = (
    *(_garbage, _other_protocol, _random_frames, _half_sent, _no_message, _promises, _resets, _flood),
    *(_no_window, _dribbles),
)


def raw_pieces(rng: random.Random, method: str, message: bytes) -> tuple[str, tuple[bytes, ...]]:
    """What is sent on a bare connection, piece by piece, and how that is called."""
    kind = rng.choice(_KINDS)
    return kind.__name__.strip("_").replace("_", " "), tuple(kind(rng, method, message))
