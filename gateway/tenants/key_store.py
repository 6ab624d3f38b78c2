"""Tenants and API keys in the database."""

from collections.abc import Callable, Collection
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, insert, select, update

from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import api_keys, tenants
from gateway.tenants.api_key import ApiKey, Scope
from gateway.tenants.plan import Plan
from paceline.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

_MAX_BYTES = 128
_PLAN = [tenants.c[field.name] for field in fields(Plan)]


class KnownTenant(NamedTuple):
    """A tenant as the database has it."""

    id: str
    created_at: float
    plan: Plan


class KnownKey(NamedTuple):
    """A key as the database has it."""

    id: str
    tenant: str
    name: str
    digest: bytes
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    plan: Plan
    """The tenant's."""

    def holds(self, now: float) -> bool:
        """Whether it lets anybody in."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyStore:
    """Reads and writes, each a transaction of its own."""

    def __init__(self, database: Database, clock: Callable[[], float] = time_of_day) -> None:
        self._database = database
        self._clock = clock

    async def create_tenant(self, tenant: str, plan: Plan) -> KnownTenant:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        check_name("id", tenant, least=1)
        row = {"id": tenant, "created_at": self._clock(), **asdict(plan)}
        async with self._database.write() as connection:
            result = await connection.execute(self._database.insert_new(tenants), [row])
            if not result.rowcount:
                raise AlreadyExistsError("tenant", tenant)
        return KnownTenant(tenant, row["created_at"], plan)

    async def update_tenant(self, tenant: str, plan: Plan) -> KnownTenant:
        """Raises NotFoundError."""
        async with self._database.write() as connection:
            changed = await connection.execute(update(tenants).where(tenants.c.id == tenant).values(**asdict(plan)))
            if not changed.rowcount:
                raise NotFoundError("tenant", tenant)
        return next(known for known in await self.tenants() if known.id == tenant)

    async def tenants(self) -> list[KnownTenant]:
        """All tenants, ordered by id."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(tenants).order_by(tenants.c.id))
            return [KnownTenant(row.id, row.created_at, _plan(row)) for row in rows]

    async def plan(self, tenant: str) -> Plan | None:
        """What a tenant may use; None for one that is not known."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(*_PLAN).where(tenants.c.id == tenant))).first()
            return None if row is None else _plan(row)

    async def create_key(
        self, tenant: str, name: str, scopes: Collection[Scope], lifetime: float | None = None
    ) -> tuple[KnownKey, ApiKey]:
        """Makes a key that holds for `lifetime` seconds. Raises NotFoundError for a tenant that is not known."""
        check_name("name", name)
        if lifetime is not None and not lifetime >= 1:
            raise InvalidArgumentError("lifetime_seconds", f"must be at least 1, got {lifetime}")
        key, now = ApiKey.new(), self._clock()
        row = {
            "id": key.id,
            "tenant": tenant,
            "name": name,
            "digest": key.digest,
            "scopes": " ".join(sorted(scopes)),
            "created_at": now,
            "expires_at": None if lifetime is None else now + lifetime,
        }
        async with self._database.write() as connection:
            if (await connection.execute(select(tenants.c.id).where(tenants.c.id == tenant))).first() is None:
                raise NotFoundError("tenant", tenant)
            await connection.execute(insert(api_keys), [row])
        return (await self.keys([key.id]))[0], key

    async def rotate_key(self, key_id: str, overlap: float) -> tuple[KnownKey, ApiKey]:
        """Makes a key like another one, which ends after `overlap` seconds unless it ends before.

        Raises NotFoundError for one that is not known, or does not hold.
        """
        if not overlap >= 0:
            raise InvalidArgumentError("overlap_seconds", f"must be at least 0, got {overlap}")
        old = next(iter(await self.keys([key_id])), None)
        if old is None or not old.holds(self._clock()):
            raise NotFoundError("API key", key_id)
        made = await self.create_key(old.tenant, old.name, old.scopes)
        ends = min(self._clock() + overlap, old.expires_at or float("inf"))
        async with self._database.write() as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(expires_at=ends))
        return made

    async def revoke_key(self, key_id: str) -> KnownKey:
        """Ends a key; one that was revoked stays as it is. Raises NotFoundError."""
        unrevoked = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
        async with self._database.write() as connection:
            await connection.execute(update(api_keys).where(unrevoked).values(revoked_at=self._clock()))
        found = await self.keys([key_id])
        if not found:
            raise NotFoundError("API key", key_id)
        return found[0]

    async def keys(self, ids: Collection[str]) -> list[KnownKey]:
        """Those of these ids that are known."""
        return await self._keys(api_keys.c.id.in_(ids))

    async def keys_of(self, tenant: str = "") -> list[KnownKey]:
        """All keys, or those of one tenant, ordered by tenant and age."""
        return await self._keys(api_keys.c.tenant == tenant if tenant else api_keys.c.id.is_not(None))

    async def has_keys(self) -> bool:
        """Whether any key was ever made."""
        async with self._database.read() as connection:
            return (await connection.execute(select(api_keys.c.id).limit(1))).first() is not None

    async def _keys(self, which: ColumnElement[bool]) -> list[KnownKey]:
        wanted = select(api_keys, *_PLAN).join(tenants).where(which)
        async with self._database.read() as connection:
            rows = await connection.execute(wanted.order_by(api_keys.c.tenant, api_keys.c.created_at))
            return [
                KnownKey(
                    *(row.id, row.tenant, row.name, row.digest, frozenset(map(Scope, row.scopes.split()))),
                    *(row.created_at, row.expires_at, row.revoked_at, _plan(row)),
                )
                for row in rows
            ]


def check_name(field: str, name: str, least: int = 0) -> None:
    """Raises InvalidArgumentError for what is too long, or holds what cannot be kept."""
    if not least <= len(name.encode()) <= _MAX_BYTES or "\0" in name:
        raise InvalidArgumentError(field, f"must be {least} to {_MAX_BYTES} bytes long, without zero bytes")


def _plan(row: Row[Any]) -> Plan:
    return Plan(**{column.name: getattr(row, column.name) for column in _PLAN})
