"""What a caller is granted at the services behind the gateway, by tokens that the gateway signs."""

from gateway.tenants.identity import Caller
from services.common.tokens import TokenMint


class Grants:
    """Tokens by caller."""

    def __init__(self, mint: TokenMint | None) -> None:
        self._mint = mint

    def token(self, caller: Caller) -> str:
        """A token for the caller's namespace; empty without a key to sign with."""
        return self._mint.token(caller.namespace) if self._mint is not None else ""
