"""What a request may share with earlier ones: its caller's own prompts, and prefixes that were declared public."""

from collections.abc import Sequence
from typing import Any

from paceline.internal.v1 import speculation_pb2
from services.common.errors import UnauthenticatedError
from services.common.tokens import TokenMint

_DEFAULT_TENANT = "default"
_MAX_TENANT_BYTES = 128


class Grants:
    """Namespaces by caller. Who a caller is says the proxy in front, in a metadata entry that it sets itself."""

    def __init__(self, mint: TokenMint | None, tenant_header: str | None, public: Sequence[Sequence[int]]) -> None:
        """`public` holds the token ids of declared prefixes."""
        self._mint = mint
        self._tenant_header = tenant_header
        self._public = public

    def namespace(self, context: Any) -> str:
        """The caller's own. Raises UnauthenticatedError when the proxy did not say who calls."""
        if self._tenant_header is None:
            return f"tenant/{_DEFAULT_TENANT}"
        for name, value in context.invocation_metadata() or ():
            if name == self._tenant_header and 0 < len(value) <= _MAX_TENANT_BYTES:
                return f"tenant/{value}"
        raise UnauthenticatedError(f"metadata entry {self._tenant_header!r} has to name the caller")

    def token(self, namespace: str) -> str:
        """A token for the prefix cache; empty without a key to sign with."""
        return self._mint.token(namespace) if self._mint is not None else ""

    def grant(self, context: Any, prompt_ids: Sequence[int]) -> speculation_pb2.TenantAccess:
        """What the sequences of a request with this prompt may share."""
        namespace = self.namespace(context)
        return speculation_pb2.TenantAccess(
            namespace=namespace,
            num_public_tokens=max((_num_common(prefix, prompt_ids) for prefix in self._public), default=0),
        )


def _num_common(prefix: Sequence[int], token_ids: Sequence[int]) -> int:
    """Leading tokens that are the same. Any part of a public prefix, from its beginning, is public too."""
    pairs = enumerate(zip(prefix, token_ids, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(prefix), len(token_ids)))
