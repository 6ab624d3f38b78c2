"""Who may use which namespace: read from a token that comes with a call or in it, and checked here."""

from collections import OrderedDict
from typing import Any

from services.common.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from services.common.tenant_token import TokenVerifier

_SCHEME = "Bearer "
_MAX_NAMESPACE_BYTES = 256


class Access:
    """Lets a call through to a namespace, or raises."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def check(self, context: Any, namespace: str) -> None:
        """As `check_token`, for the token in a call's metadata."""
        metadata: dict[str, Any] = OrderedDict(context.invocation_metadata() or ())
        header = str(metadata.get("authorization", ""))
        self.check_token(header.removeprefix(_SCHEME) if header.startswith(_SCHEME) else "", namespace)

    def check_token(self, token: str, namespace: str) -> None:
        """Raises UnauthenticatedError without a token that holds, PermissionDeniedError for another's namespace."""
        if not namespace or len(namespace.encode()) > _MAX_NAMESPACE_BYTES:
            raise InvalidArgumentError("namespace", f"must be 1 to {_MAX_NAMESPACE_BYTES} bytes long")
        if not token:
            raise UnauthenticatedError("a bearer token is needed")
        if namespace not in self._verifier.namespaces(token):
            raise PermissionDeniedError(f"the token is not for namespace {namespace!r}")


def credentials(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries a token."""
    return (("authorization", _SCHEME + token),)
