"""Digests: of token sequences (anchors), of KV blocks, of identities."""

import struct
from collections.abc import Iterable, Sequence

from blake3 import blake3
from xxhash import xxh3_64_intdigest

EMPTY_DIGEST = 0
"""Digest of no tokens."""

_step = struct.Struct("<QI").pack


def extend_digest(digest: int, token_ids: Iterable[int]) -> int:
    """The 64-bit chain over token ids, one step (XXH3 of the digest so far and the token id) per token."""
    for token_id in token_ids:
        digest = xxh3_64_intdigest(_step(digest, token_id))
    return digest


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """32-byte digest of a block of tokens that follows `parent` (the block before, or an identity)."""
    return blake3(
        _field(b"parent", parent) + _field(b"tokens", struct.pack(f"<{len(token_ids)}I", *token_ids))
    ).digest()


def identity_digest(**fields: str | int | bytes) -> bytes:
    """32-byte digest of named fields. Tags, types and lengths are part of it: no two different sets collide."""
    hasher = blake3()
    for name in sorted(fields):
        value = fields[name]
        kind = type(value).__name__
        data = value if isinstance(value, bytes) else str(value).encode()
        hasher.update(_field(f"{kind}:{name}".encode(), data))
    return hasher.digest()


def _field(tag: bytes, data: bytes) -> bytes:
    return struct.pack("<QQ", len(tag), len(data)) + tag + data
