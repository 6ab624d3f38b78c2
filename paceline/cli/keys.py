"""`paceline keys`: API keys of a gateway's tenants."""

import runpy
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from paceline.cli.serve import SERVE, reach
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, day, err, out, print_json
from paceline.v1 import admin_pb2

keys = typer.Typer(no_args_is_help=True, help="API keys of tenants; takes a key of scope admin.")
_DAY_SECONDS = 86400.0
KeyId = Annotated[str, typer.Argument(help="Id of the key: what stands between its underscores.")]


@keys.command()
def first(
    tenant: Annotated[str, typer.Option(help="Whose; it is made where there is none.")] = "default",
    name: Annotated[str, typer.Option(help="What you call it.")] = "first",
    database: Annotated[
        str | None,
        typer.Option(help="Its address; default: among your user's data.", envvar="PACELINE_GATEWAY_DATABASE"),
    ] = None,
) -> None:
    """Makes a key of all scopes in the database of a gateway on this machine, which need not run."""
    reach(SERVE)
    given = ["--database", database] if database else []
    sys.argv = ["paceline keys first", *given, "--tenant", tenant, "--name", name]
    runpy.run_module("gateway.first_key", run_name="__main__")


@keys.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose.")],
    address: Address = DEFAULT_ADDRESS,
    name: Annotated[str, typer.Option(help="What you call it.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference, batch, adapters, cache, usage, admin; may be repeated. Default: all but admin."),
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days after which it stops holding.")] = None,
) -> None:
    """Makes a key and prints it, this once."""
    lifetime = None if days is None else days * _DAY_SECONDS
    with connected(address) as client:
        made = client.create_key(tenant, name, scope or (), lifetime)
        _show_secret(made.key, made.secret)


@keys.command()
def rotate(
    key: KeyId,
    address: Address = DEFAULT_ADDRESS,
    hours: Annotated[float, typer.Option(help="How long the old one holds beside the new one.")] = 24,
) -> None:
    """Makes a key in the place of another, and prints it, this once."""
    with connected(address) as client:
        made = client.rotate_key(key, hours * 3600)
        _show_secret(made.key, made.secret)


@keys.command()
def revoke(key: KeyId, address: Address = DEFAULT_ADDRESS) -> None:
    """Ends a key, and what runs with it, within seconds."""
    with connected(address) as client:
        ended = client.revoke_key(key)
        out.print(f"{ended.id} of {ended.tenant} revoked")


@keys.command("list")
def list_keys(
    address: Address = DEFAULT_ADDRESS,
    tenant: Annotated[str, typer.Option(help="Whose; default: everybody's.")] = "",
    as_json: AsJson = False,
) -> None:
    """Lists keys, without what they are."""
    with connected(address) as client:
        found = client.list_keys(tenant)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: Sequence[admin_pb2.ApiKey]) -> None:
    table = Table("id", "tenant", "name", "scopes", "made", "state", box=None)
    now = datetime.now(UTC)
    for key in found:
        state = "holds"
        if key.HasField("revoke_time"):
            state = f"revoked {day(key.revoke_time)}"
        elif key.HasField("expire_time"):
            is_over = key.expire_time.ToDatetime(UTC) <= now
            state = f"{'expired' if is_over else 'holds until'} {day(key.expire_time)}"
        table.add_row(key.id, key.tenant, key.name, " ".join(key.scopes), day(key.create_time), state)
    out.print(table)


def _show_secret(key: admin_pb2.ApiKey, secret: str) -> None:
    """The key alone on standard output, for scripts."""
    err.print(f"key {key.id} of {key.tenant} for {', '.join(key.scopes)}; it is not shown again:", markup=False)
    out.print(secret)
