"""Who calls is what the proxy says, and nothing else."""

from typing import Any

import pytest

from gateway.tenants.identity import Caller, Identity
from paceline.errors import UnauthenticatedError


class Context:
    """As much of a call as says who makes it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata or None


def test_without_a_header_all_callers_are_one() -> None:
    assert Identity(None).caller(Context(("x-tenant", "a"))) == Identity(None).caller(Context())  # type: ignore[arg-type]


def test_the_header_names_the_caller() -> None:
    caller = Identity("x-tenant").caller(Context(("other", "b"), ("x-tenant", "a")))  # type: ignore[arg-type]
    assert caller == Caller("a")
    assert caller.namespace == "tenant/a"


@pytest.mark.parametrize("metadata", [(), (("x-tenant", ""),), (("x-tenant", "a" * 129),), (("tenant", "a"),)])
def test_who_is_not_named_is_not_served(metadata: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(UnauthenticatedError, match="x-tenant"):
        Identity("x-tenant").caller(Context(*metadata))  # type: ignore[arg-type]


def test_whoever_is_named_twice_is_not_served() -> None:
    """A proxy that appends leaves the client's own entry in front of its own."""
    with pytest.raises(UnauthenticatedError, match="exactly one"):
        Identity("x-tenant").caller(Context(("x-tenant", "victim"), ("x-tenant", "a")))  # type: ignore[arg-type]
