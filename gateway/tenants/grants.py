"""What a caller is granted at the services behind the gateway, by tokens that the gateway signs."""

from gateway.tenants.identity import Caller
from paceline.internal.v1 import speculation_pb2
from services.common.tokens import TokenMint


class Grants:
    """Tokens by caller."""

    def __init__(self, mint: TokenMint | None) -> None:
        self._mint = mint

    def token(self, caller: Caller) -> str:
        """A token for what the gateway asks of stores in the caller's name; empty without a key to sign with."""
        return self._mint.owner_token(caller.namespace) if self._mint is not None else ""

    def sequence_token(self, tenant: speculation_pb2.TenantAccess) -> str:
        """A token that is handed to engines; empty without a key to sign with."""
        if self._mint is None:
            return ""
        return self._mint.sequence_token(tenant.namespace, public=tenant.num_public_tokens > 0)
