"""Who calls: found out once for every call, before anything is done for it."""

from dataclasses import dataclass

from paceline.errors import UnauthenticatedError
from services.common.access import CallContext

_DEFAULT_TENANT = "default"
_MAX_TENANT_BYTES = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as the gateway found out by itself."""

    tenant: str

    @property
    def namespace(self) -> str:
        """Where the tenant's blocks and adapters are kept."""
        return f"tenant/{self.tenant}"


class Identity:
    """Tells callers by a metadata entry that the proxy in front sets, overwriting what clients send."""

    def __init__(self, tenant_header: str | None) -> None:
        """Without a header all callers are one."""
        self._tenant_header = tenant_header

    def caller(self, context: CallContext) -> Caller:
        """Who calls. Raises UnauthenticatedError when the proxy did not say."""
        if self._tenant_header is None:
            return Caller(_DEFAULT_TENANT)
        named = [str(value) for name, value in context.invocation_metadata() or () if name == self._tenant_header]
        if len(named) != 1 or not 0 < len(named[0].encode()) <= _MAX_TENANT_BYTES:
            # Of two entries one is the client's own.
            raise UnauthenticatedError(f"exactly one metadata entry {self._tenant_header!r} has to name the caller")
        return Caller(named[0])
