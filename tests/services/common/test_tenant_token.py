"""A token opens its own namespaces, for its time, and only when a known key has signed it."""

import jwt
import pytest

from services.common.errors import UnauthenticatedError
from services.common.tokens import (
    ADAPTER_STORE,
    PREFIX_CACHE,
    PUBLIC_NAMESPACE,
    TokenMint,
    TokenVerifier,
    expiry,
    new_signing_key,
    public_key,
)

KEY = new_signing_key()
KEYS = [public_key(new_signing_key()), public_key(KEY)]
VERIFIER = TokenVerifier(KEYS, PREFIX_CACHE)


def test_a_token_opens_its_namespace_and_the_public_one() -> None:
    token = TokenMint(KEY, 60).token("tenant/a")
    for audience in (PREFIX_CACHE, ADAPTER_STORE):
        assert TokenVerifier(KEYS, audience).namespaces(token) == {"tenant/a", PUBLIC_NAMESPACE}
    with pytest.raises(UnauthenticatedError):
        TokenVerifier(KEYS, "another.service").namespaces(token)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", jwt.encode({"namespaces": ["a"]}, "0" * 32, "HS256")])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        VERIFIER.namespaces(token)


def test_another_key_an_old_token_and_a_changed_one_are_refused() -> None:
    token = TokenMint(KEY, 60).token("tenant/a")
    head, body, signature = token.split(".")
    wrong = [
        TokenMint(new_signing_key(), 60).token("tenant/a"),
        TokenMint(KEY, 60, clock=lambda: 1e9).token("tenant/a"),
        f"{head}.{body[:-2]}AA.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
    ]
    for other in wrong:
        with pytest.raises(UnauthenticatedError):
            VERIFIER.namespaces(other)


def test_a_token_is_handed_out_again_until_half_of_its_life_is_over() -> None:
    now = 1e9
    mint = TokenMint(KEY, 60, clock=lambda: now)
    first = mint.token("tenant/a")
    now += 29
    assert mint.token("tenant/a") == first
    now += 2
    assert mint.token("tenant/a") != first


@pytest.mark.parametrize("token", ["", "x", "a.b.c", jwt.encode({"namespaces": ["a"]}, "0" * 32, "HS256")])
def test_what_is_no_token_has_expired(token: str) -> None:
    assert expiry(token) == 0


def test_a_token_says_when_it_expires() -> None:
    assert expiry(TokenMint(KEY, 60, clock=lambda: 1000.0).token("tenant/a")) == 1060
