"""`paceline tenants`: who may use a gateway, and how much."""

from collections.abc import Callable
from typing import Annotated

import typer
from rich.table import Table

from paceline import SyncClient
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, day, money, nanos, out, print_json
from paceline.v1 import admin_pb2

tenants = typer.Typer(no_args_is_help=True, help="Tenants and what they may use; takes a key of scope admin.")
Name = Annotated[str, typer.Argument(help="Id of the tenant.")]
Requests = Annotated[int | None, typer.Option(min=0, help="Requests a minute.")]
Tokens = Annotated[int | None, typer.Option(min=0, help="Tokens a minute.")]
Streams = Annotated[int | None, typer.Option(min=0, help="Requests that stream at once.")]
BatchItems = Annotated[int | None, typer.Option(min=0, help="Items of batches that wait or run.")]
BatchTokens = Annotated[int | None, typer.Option(min=0, help="Tokens of these items.")]
Cost = Annotated[float | None, typer.Option(min=0, help="Cost in a calendar month.")]
Priority = Annotated[int | None, typer.Option(min=-100, max=100, help="Largest priority of its requests; default 0.")]
Weight = Annotated[float | None, typer.Option(help="Its share among tenants that wait; default 1.")]


def _command(
    name: str, change: Callable[[SyncClient, str, admin_pb2.Plan], admin_pb2.Tenant], done: str, text: str
) -> None:
    """A command that gives a tenant a plan."""

    @tenants.command(name, help=text)
    def command(
        tenant: Name,
        address: Address = DEFAULT_ADDRESS,
        requests_per_minute: Requests = None,
        tokens_per_minute: Tokens = None,
        max_streams: Streams = None,
        max_batch_items: BatchItems = None,
        max_batch_tokens: BatchTokens = None,
        max_monthly_cost: Cost = None,
        max_priority: Priority = None,
        weight: Weight = None,
    ) -> None:
        plan = admin_pb2.Plan(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_streams=max_streams,
            max_batch_items=max_batch_items,
            max_batch_tokens=max_batch_tokens,
            max_monthly_cost_nanos=nanos(max_monthly_cost),
            max_priority=max_priority,
            weight=weight,
        )
        with connected(address) as client:
            out.print(f"{change(client, tenant, plan).id} {done}")


_command("create", SyncClient.create_tenant, "made", "Makes a tenant. What is not said has no limit.")
_command(
    "update",
    SyncClient.update_tenant,
    "changed",
    "Replaces what a tenant may use, all of it. What is not said has no limit any more.",
)


@tenants.command("list")
def list_tenants(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Lists all tenants."""
    with connected(address) as client:
        found = client.list_tenants()
    if as_json:
        print_json(found)
        return
    table = Table("id", "made", "limits", box=None)
    for tenant in found:
        limits = []
        for field, value in tenant.plan.ListFields():
            is_money = field.name.endswith("_nanos")
            limits.append(f"{field.name.removesuffix('_nanos')}={money(value) if is_money else format(value, 'g')}")
        table.add_row(tenant.id, day(tenant.create_time), ", ".join(limits) or "none")
    out.print(table)
