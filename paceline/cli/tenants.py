"""`paceline tenants`: who may use a gateway, and how much."""

from typing import Annotated

import typer
from rich.table import Table

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


@tenants.command()
def create(
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
    """Makes a tenant. What is not said has no limit."""
    plan = _plan(
        *(requests_per_minute, tokens_per_minute, max_streams, max_batch_items, max_batch_tokens),
        *(max_monthly_cost, max_priority, weight),
    )
    with connected(address) as client:
        out.print(f"{client.create_tenant(tenant, plan).id} made")


@tenants.command()
def update(
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
    """Replaces what a tenant may use, all of it. What is not said has no limit any more."""
    plan = _plan(
        *(requests_per_minute, tokens_per_minute, max_streams, max_batch_items, max_batch_tokens),
        *(max_monthly_cost, max_priority, weight),
    )
    with connected(address) as client:
        out.print(f"{client.update_tenant(tenant, plan).id} changed")


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


def _plan(
    requests: int | None,
    tokens: int | None,
    streams: int | None,
    batch_items: int | None,
    batch_tokens: int | None,
    cost: float | None,
    priority: int | None,
    weight: float | None,
) -> admin_pb2.Plan:
    return admin_pb2.Plan(
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        max_streams=streams,
        max_batch_items=batch_items,
        max_batch_tokens=batch_tokens,
        max_monthly_cost_nanos=nanos(cost),
        max_priority=priority,
        weight=weight,
    )
