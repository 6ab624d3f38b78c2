"""What a caller is granted at the services behind the gateway, by tokens that the gateway signs."""

from gateway.tenants.identity import Caller
from paceline.internal.v1 import speculation_pb2
from services.common.tokens import TokenMint


class Grants:
    """Tokens by caller."""

    def __init__(self, mint: TokenMint | None) -> None:
        self._mint = mint

    def token(self, caller: Caller) -> str:
        """A token for what the gateway asks of stores and caches in the caller's name; empty without a key to sign."""
        return self._token(caller.namespace)

    def sequence_token(self, tenant: speculation_pb2.TenantAccess) -> str:
        """A token that is handed to engines; empty without a key to sign."""
        return self._token(tenant.namespace)

    def _token(self, namespace: str) -> str:
        return self._mint.token(namespace) if self._mint is not None else ""
