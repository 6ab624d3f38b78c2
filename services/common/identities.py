"""Who may call whom: what a caller is says its certificate, what it may call says the table here.

A certificate names one identity as a URI (SPIFFE ID, https://spiffe.io): spiffe://paceline/verifier. Health, reflection
and load reports answer every identity of the system; whatever is not in the table answers nobody.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from paceline.errors import PermissionDeniedError, UnauthenticatedError

_PEER_URI = "peer_uri"
"""Where gRPC has the URIs of the certificate that the other end of a call showed."""


class Identity(StrEnum):
    """What a process, or whoever calls one, is."""

    GATEWAY = "gateway"
    VERIFIER = "verifier"
    DRAFT = "draft"
    PREFIX_CACHE = "prefix-cache"
    ADAPTER_STORE = "adapter-store"
    CLIENT = "client"
    """Whoever uses gateways: a program, a person, a proxy in front."""


_EVERYBODY = frozenset(Identity)
_CLIENT = frozenset({Identity.CLIENT})
_GATEWAY = frozenset({Identity.GATEWAY})
_ENGINES = frozenset({Identity.VERIFIER, Identity.DRAFT})
CALLERS: Mapping[str, frozenset[Identity]] = {
    "paceline.v1": _CLIENT,
    "paceline.internal.v1.VerifierService": _GATEWAY,
    "paceline.internal.v1.DraftService": _GATEWAY,
    "paceline.internal.v1.ModelServerService": _GATEWAY,
    "paceline.internal.v1.ProcessService": _GATEWAY,
    "paceline.internal.v1.PrefixCacheService": _ENGINES,
    "paceline.internal.v1.PrefixCacheService/GetNamespaceStatistics": _GATEWAY,
    "paceline.internal.v1.PrefixCacheService/DeleteNamespace": _GATEWAY,
    "paceline.internal.v1.AdapterStoreService": _GATEWAY,
    # A draft is let have what was uploaded for drafts, which the store sees to.
    "paceline.internal.v1.AdapterStoreService/FetchAdapter": _ENGINES,
    "grpc.health.v1": _EVERYBODY,
    "grpc.reflection": _EVERYBODY,
    "xds.service.orca.v3": _EVERYBODY,
    "grpc.channelz.v1": _GATEWAY,
}
"""By package, service or method; the longest name that fits is meant."""


def callers_of(method: str) -> frozenset[Identity]:
    """Who may call a method, given as gRPC has it: /package.Service/Method."""
    name = method.removeprefix("/")
    while name:
        if name in CALLERS:
            return CALLERS[name]
        name = name[: max(name.rfind("/"), name.rfind("."), 0)]
    return frozenset()


def identity_of(context: Any, trust_domain: str) -> Identity | None:
    """Whose certificate a call's other end showed; None where that is nobody of this system."""
    uris = [uri.decode(errors="replace") for uri in context.auth_context().get(_PEER_URI, ())]
    prefix = f"spiffe://{trust_domain}/"
    if len(uris) != 1 or not uris[0].startswith(prefix):
        return None
    try:
        return Identity(uris[0].removeprefix(prefix))
    except ValueError:
        return None


def admission(trust_domain: str) -> Callable[[str, Any], None]:
    """What raises for a call that its caller may not make, by the method and the call's context.

    It raises UnauthenticatedError for who has no identity here, PermissionDeniedError for who has another one.
    """

    def check(method: str, context: Any) -> None:
        caller, allowed = identity_of(context, trust_domain), callers_of(method)
        if caller is None:
            needed = f"spiffe://{trust_domain}/" + (min(allowed) if len(allowed) == 1 else "...")
            raise UnauthenticatedError(f"the caller's certificate says not who it is: it takes a URI such as {needed}")
        if caller not in allowed:
            who = " and ".join(sorted(allowed)) or "nobody"
            raise PermissionDeniedError(f"the identity {caller} may not call {method.removeprefix('/')}; {who} may")

    return check
