"""A token opens its own namespaces, for its use and its time, and only when a known key has signed it."""

from typing import Any

import jwt
import pytest

from paceline.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from paceline.internal.v1 import speculation_pb2
from services.common.access import Access, bearer_token, credentials
from services.common.tokens import (
    ADAPTER_STORE,
    ADAPTER_STORE_OWNER,
    ENGINE,
    PREFIX_CACHE,
    PREFIX_CACHE_OWNER,
    PUBLIC_NAMESPACE,
    TokenMint,
    TokenVerifier,
    expiry,
    new_signing_key,
    public_key,
)
from services.model_server.opening import to_tenant

KEY = new_signing_key()
KEYS = [public_key(new_signing_key()), public_key(KEY)]
VERIFIER = TokenVerifier(KEYS, PREFIX_CACHE)
AUDIENCES = {ENGINE, PREFIX_CACHE, PREFIX_CACHE_OWNER, ADAPTER_STORE, ADAPTER_STORE_OWNER}


class Call:
    """What a servicer sees of a call that carries these tokens."""

    def __init__(self, *tokens: str) -> None:
        self._metadata = [entry for token in tokens for entry in credentials(token)]

    def invocation_metadata(self) -> Any:
        return self._metadata


def holds_for(token: str) -> set[str]:
    """The audiences to whom a token says anything."""
    held = set()
    for audience in AUDIENCES:
        try:
            TokenVerifier(KEYS, audience).namespaces(token)
        except UnauthenticatedError:
            continue
        held.add(audience)
    return held


def test_a_token_of_a_sequence_is_good_for_nothing_that_an_owner_does() -> None:
    mint = TokenMint(KEY, 60)
    for public in (False, True):
        assert holds_for(mint.sequence_token("tenant/a", public=public)) == {ENGINE, PREFIX_CACHE, ADAPTER_STORE}
    assert holds_for(mint.owner_token("tenant/a")) == {PREFIX_CACHE_OWNER, ADAPTER_STORE_OWNER}


def test_a_token_opens_its_namespace_and_the_public_one_where_it_says_so() -> None:
    mint = TokenMint(KEY, 60)
    assert VERIFIER.namespaces(mint.sequence_token("tenant/a")) == {"tenant/a"}
    assert VERIFIER.namespaces(mint.sequence_token("tenant/a", public=True)) == {"tenant/a", PUBLIC_NAMESPACE}
    owners = TokenVerifier(KEYS, PREFIX_CACHE_OWNER)
    assert owners.namespaces(mint.owner_token("tenant/a")) == {"tenant/a"}


def test_public_tokens_are_declared_by_those_whose_tokens_say_so() -> None:
    access, mint = Access(TokenVerifier(KEYS, ENGINE)), TokenMint(KEY, 60)
    tenant = speculation_pb2.TenantAccess(namespace="tenant/a", num_public_tokens=1)
    context: Any = Call(mint.sequence_token("tenant/a", public=True))
    assert to_tenant(tenant, context, access).namespace == "tenant/a"
    context = Call(mint.sequence_token("tenant/a"))
    with pytest.raises(PermissionDeniedError):
        to_tenant(tenant, context, access)


def test_a_namespace_is_bounded_also_where_no_token_is_asked_for() -> None:
    context: Any = Call("")
    assert to_tenant(speculation_pb2.TenantAccess(namespace="a" * 256), context, None).namespace == "a" * 256
    with pytest.raises(InvalidArgumentError):
        to_tenant(speculation_pb2.TenantAccess(namespace="a" * 257), context, None)


def test_a_call_with_two_tokens_has_none() -> None:
    one: Any = Call("a")
    assert bearer_token(one) == "a"
    two: Any = Call("a", "b")
    with pytest.raises(UnauthenticatedError):
        bearer_token(two)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", jwt.encode({"namespaces": ["a"]}, "0" * 32, "HS256")])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        VERIFIER.namespaces(token)


def test_another_key_an_old_token_and_a_changed_one_are_refused() -> None:
    token = TokenMint(KEY, 60).sequence_token("tenant/a")
    head, body, signature = token.split(".")
    wrong = [
        TokenMint(new_signing_key(), 60).sequence_token("tenant/a"),
        TokenMint(KEY, 60, clock=lambda: 1e9).sequence_token("tenant/a"),
        f"{head}.{body[:-2]}AA.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
    ]
    for other in wrong:
        with pytest.raises(UnauthenticatedError):
            VERIFIER.namespaces(other)


def test_a_token_is_handed_out_again_until_half_of_its_life_is_over() -> None:
    now = 1e9
    mint = TokenMint(KEY, 60, clock=lambda: now)
    first = mint.sequence_token("tenant/a")
    now += 29
    assert mint.sequence_token("tenant/a") == first
    assert mint.sequence_token("tenant/a", public=True) != first
    now += 2
    assert mint.sequence_token("tenant/a") != first


@pytest.mark.parametrize("token", ["", "x", "a.b.c", jwt.encode({"namespaces": ["a"]}, "0" * 32, "HS256")])
def test_what_is_no_token_has_expired(token: str) -> None:
    assert expiry(token) == 0


def test_a_token_says_when_it_expires() -> None:
    assert expiry(TokenMint(KEY, 60, clock=lambda: 1000.0).sequence_token("tenant/a")) == 1060
