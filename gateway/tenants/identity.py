"""Who calls: found out once for every call, before anything is done for it.

Once there are API keys, a caller shows one, or a proxy that the settings name says who it is. Before that all callers
are one tenant, or whoever the proxy in front says; nobody of them may administer.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import unquote

from gateway.tenants.api_key import USUAL_SCOPES, Scope
from gateway.tenants.key_store import check_name
from gateway.tenants.keys import Keys
from gateway.tenants.plan import LOCAL_PLAN, NO_LIMITS, Plan
from paceline.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from services.common.access import CallContext, bearer_token

_log = logging.getLogger(__name__)
LOCAL_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as the gateway found out by itself, and what it may."""

    tenant: str
    key_id: str = ""
    scopes: frozenset[Scope] = USUAL_SCOPES
    plan: Plan = NO_LIMITS

    @property
    def namespace(self) -> str:
        """Where the tenant's blocks and adapters are kept."""
        return f"tenant/{self.tenant}"

    def check(self, scope: Scope) -> None:
        """Raises PermissionDeniedError for what it may not do."""
        if scope not in self.scopes:
            _log.warning("API key %r of tenant %r is not for %r", self.key_id, self.tenant, scope)
            needs = f"the API key is not for {scope.value!r}"
            raise PermissionDeniedError(needs if self.key_id else f"that takes an API key for {scope.value!r}")


class Identity:
    """Tells callers by their keys, or by a metadata entry that a proxy sets, overwriting what clients send."""

    def __init__(
        self, keys: Keys, *, tenant_header: str | None = None, proxies: Sequence[str] = (), anonymous: bool = False
    ) -> None:
        """`proxies` are networks of those whose `tenant_header` is believed once there are keys."""
        self._keys = keys
        self._tenant_header = tenant_header
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._anonymous = anonymous

    async def caller(self, context: CallContext, scope: Scope | None = Scope.INFERENCE) -> Caller:
        """Who calls, for what. Raises UnauthenticatedError, PermissionDeniedError."""
        metadata = [(name, str(value)) for name, value in context.invocation_metadata() or ()]
        caller = await self._caller(metadata, context.peer(), bearer_token(context))
        if scope is not None:
            caller.check(scope)
        return caller

    async def check_operator(self, context: CallContext, *, is_local: bool) -> None:
        """Raises UnauthenticatedError or PermissionDeniedError for who may not see how the system fares.

        That takes a key of scope admin. Where there are no keys and nobody from elsewhere gets here (`is_local`, and
        no proxy in front), everybody may.
        """
        has_front = self._tenant_header is not None or self._anonymous
        is_open = is_local and not has_front and not await self._keys.has_keys()
        await self.caller(context, None if is_open else Scope.ADMIN)

    async def _caller(self, metadata: Iterable[tuple[str, str]], peer: str, token: str) -> Caller:
        needs_key = await self._keys.has_keys()
        if named := [value for name, value in metadata if name == self._tenant_header]:
            if needs_key and not self._is_proxy(peer):
                _log.warning("%s says who calls, and is no proxy of the settings", peer)
                raise UnauthenticatedError(f"metadata entry {self._tenant_header!r} is not taken from this peer")
            return await self._named(named)
        if needs_key and token:
            return await self._with_key(token, peer)
        if self._tenant_header is not None and not needs_key:
            raise UnauthenticatedError(f"exactly one metadata entry {self._tenant_header!r} has to name the caller")
        if needs_key and not self._anonymous:
            raise UnauthenticatedError("an API key is needed, as metadata entry 'authorization': 'Bearer KEY'")
        return Caller(LOCAL_TENANT, plan=LOCAL_PLAN)

    async def _named(self, named: Sequence[str]) -> Caller:
        try:
            # Of two entries one is the client's own.
            if len(named) == 1:
                check_name("tenant", named[0], least=1)
                return Caller(named[0], plan=await self._keys.plan(named[0]))
        except InvalidArgumentError:
            pass
        raise UnauthenticatedError(f"exactly one metadata entry {self._tenant_header!r} has to name the caller")

    async def _with_key(self, token: str, peer: str) -> Caller:
        key = await self._keys.find(token)
        if key is None:
            _log.warning("%s showed an API key that does not hold", peer)
            raise UnauthenticatedError("the API key does not hold")
        return Caller(key.tenant, key.id, key.scopes, key.plan)

    def _is_proxy(self, peer: str) -> bool:
        """Whether a peer as gRPC writes it, such as "ipv4:10.0.0.1:4711" or "ipv6:%5B::1%5D:4711", is named."""
        kind, _, rest = unquote(peer).partition(":")
        host = rest.rpartition(":")[0].strip("[]")
        if kind not in ("ipv4", "ipv6"):
            return False
        address = ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address to listen on."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
