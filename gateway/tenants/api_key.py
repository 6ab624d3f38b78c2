"""API keys as text: "pcl_ID_SECRET". The id finds the row, whose digest of the secret says whether the key is the one.

A secret has 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess.
"""

import hashlib
import hmac
import secrets
from enum import StrEnum
from typing import NamedTuple

from paceline.errors import FieldViolation, InvalidArgumentError

_SCHEME = "pcl"
_ID_BYTES = 6
_SECRET_BYTES = 32
_MAX_CHARACTERS = 128


class Scope(StrEnum):
    """What a key is for."""

    INFERENCE = "inference"
    BATCH = "batch"
    ADAPTERS = "adapters"
    CACHE = "cache"
    USAGE = "usage"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)
USUAL_SCOPES = ALL_SCOPES - {Scope.ADMIN}


class ApiKey(NamedTuple):
    """The two parts of a key."""

    id: str
    secret: str

    @classmethod
    def new(cls) -> "ApiKey":
        """A key that nobody has."""
        return cls(secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "ApiKey | None":
        """The parts of what may be a key; None for what is none."""
        parts = text.split("_")
        if len(parts) != 3 or parts[0] != _SCHEME or len(text) > _MAX_CHARACTERS or not text.isascii():
            return None
        return cls(parts[1], parts[2])

    @property
    def text(self) -> str:
        """The key as its owner has it."""
        return f"{_SCHEME}_{self.id}_{self.secret}"

    @property
    def digest(self) -> bytes:
        """What is kept of the secret."""
        return hashlib.sha256(self.secret.encode()).digest()

    def is_of(self, digest: bytes) -> bool:
        """Whether a digest is the secret's, in a time that does not depend on it."""
        return hmac.compare_digest(self.digest, digest)


def read_scopes(names: "list[str]") -> frozenset[Scope]:
    """Scopes by their names; none named are the usual ones. Raises InvalidArgumentError."""
    unknown = [name for name in names if name not in {*Scope}]
    if unknown:
        known = ", ".join(Scope)
        violations = [FieldViolation("scopes", f"{name!r} is none of {known}") for name in unknown]
        raise InvalidArgumentError(*violations[0], *violations[1:])
    return frozenset(map(Scope, names)) or USUAL_SCOPES
