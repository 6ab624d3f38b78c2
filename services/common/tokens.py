"""Short-lived tokens that say which namespaces a caller may use, and for what: of computed prompts, of adapters.

JSON Web Tokens (RFC 7519) signed with Ed25519 (RFC 8037): the gateway holds the private key, the services the public
ones. A key is named by its digest ("kid"), so that keys can be changed while both are about.

A token is minted for one use, and its audiences are what that use needs. Engines are given tokens of a sequence, which
read and extend a namespace's blocks and fetch its adapters. What changes or deletes a tenant's things asks for a token
of the owner, which never leaves the gateway: an engine that was broken into can delete nothing.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jwt
from blake3 import blake3
from cachetools import TTLCache
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from paceline.errors import UnauthenticatedError

PUBLIC_NAMESPACE = "public"
"""Namespace of the prefixes that a model's owner declared public. No caller has it as its own."""
PREFIX_CACHE = "paceline.prefix-cache"
"""Audience of who reads and stores blocks."""
PREFIX_CACHE_OWNER = "paceline.prefix-cache.owner"
"""Audience of who looks at namespaces and deletes them."""
ADAPTER_STORE = "paceline.adapter-store"
"""Audience of who fetches adapters."""
ADAPTER_STORE_OWNER = "paceline.adapter-store.owner"
"""Audience of who stores, resolves, lists and removes adapters."""
ENGINE = "paceline.engine"
"""Audience of who opens sequences at verifiers and drafts."""
_SEQUENCE = (ENGINE, PREFIX_CACHE, ADAPTER_STORE)
_OWNER = (PREFIX_CACHE_OWNER, ADAPTER_STORE_OWNER)
_ALGORITHM = "EdDSA"
_LEEWAY_SECONDS = 5.0
_MAX_MINTED = 1 << 16


def new_signing_key() -> str:
    """A new private key: 64 hexadecimal digits."""
    raw = Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return raw.hex()


def public_key(signing_key: str) -> str:
    """The public key of a private one: 64 hexadecimal digits."""
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(signing_key))
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


class _Claims(NamedTuple):
    audiences: tuple[str, ...]
    namespaces: tuple[str, ...]


class TokenMint:
    """Signs tokens. One is handed out again until half of its life is over."""

    def __init__(self, signing_key: str, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(signing_key))
        self._headers = {"kid": _key_id(public_key(signing_key))}
        self._seconds = seconds
        self._clock = clock
        self._minted: TTLCache[_Claims, str] = TTLCache(_MAX_MINTED, seconds / 2, clock)

    def sequence_token(self, namespace: str, *, public: bool = False) -> str:
        """What engines are given for the sequences of a namespace.

        With `public` it reads and extends the public namespace of the prefix cache too: for sequences that begin with
        what was declared public, and no others.
        """
        return self._token(_Claims(_SEQUENCE, (namespace, PUBLIC_NAMESPACE) if public else (namespace,)))

    def owner_token(self, namespace: str) -> str:
        """What a namespace is managed with, in its owner's name; with the public one, in the operator's."""
        return self._token(_Claims(_OWNER, (namespace,)))

    def _token(self, claims: "_Claims") -> str:
        token = self._minted.get(claims)
        if token is None:
            written = {
                "aud": claims.audiences,
                "exp": self._clock() + self._seconds,
                "namespaces": claims.namespaces,
            }
            self._minted[claims] = token = jwt.encode(written, self._private, _ALGORITHM, self._headers)
        return token


class TokenVerifier:
    """Checks tokens for one audience against public keys, any of which may have signed."""

    def __init__(self, public_keys: Sequence[str], audience: str) -> None:
        self._audience = audience
        self._keys = {_key_id(key): Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in public_keys}

    def namespaces(self, token: str) -> frozenset[str]:
        """What a token allows. Raises UnauthenticatedError when it does not hold."""
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=self._audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "aud"]},
            )
            return frozenset(str(name) for name in claims["namespaces"])
        except KeyError as error:
            raise UnauthenticatedError("the token names no key that is known here, or no namespaces") from error
        except (jwt.InvalidTokenError, TypeError) as error:
            raise UnauthenticatedError(f"the token does not hold: {error}") from error


def expiry(token: str) -> float:
    """When a token expires, in seconds since 1970, by what it says itself: nothing is checked. 0 for what is no token.

    For whoever keeps tokens on behalf of others, and should keep none that is of no use.
    """
    try:
        return float(jwt.decode(token, options={"verify_signature": False})["exp"])
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
        return 0.0


def _key_id(key: str) -> str:
    return blake3(bytes.fromhex(key)).hexdigest(8)
