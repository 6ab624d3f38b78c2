"""Who may use which namespace: read from the token in a call's metadata, and checked here."""

from typing import Any, TypeAlias

import grpc

from paceline.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from services.common.tokens import TokenVerifier

_HEADER = "authorization"
_SCHEME = "Bearer "
MAX_NAMESPACE_BYTES = 256


CallContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""What a servicer's methods are given beside the request."""


class Access:
    """Lets a call through to a namespace, or raises."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def check(self, context: CallContext, namespace: str) -> None:
        """Raises UnauthenticatedError without a token that holds, PermissionDeniedError for another's namespace."""
        if not namespace or len(namespace.encode()) > MAX_NAMESPACE_BYTES:
            raise InvalidArgumentError("namespace", f"must be 1 to {MAX_NAMESPACE_BYTES} bytes long")
        token = bearer_token(context)
        if not token:
            raise UnauthenticatedError("a bearer token is needed")
        if namespace not in self._verifier.namespaces(token):
            raise PermissionDeniedError(f"the token is not for namespace {namespace!r}")


def bearer_token(context: CallContext) -> str:
    """The token in a call's metadata; empty without one. Raises UnauthenticatedError for more than one."""
    headers = [str(value) for name, value in context.invocation_metadata() or () if name == _HEADER]
    if len(headers) > 1:
        raise UnauthenticatedError(f"metadata entry {_HEADER!r} must be there once")
    return headers[0].removeprefix(_SCHEME) if headers and headers[0].startswith(_SCHEME) else ""


def credentials(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries a token; none without one."""
    return ((_HEADER, _SCHEME + token),) if token else ()
