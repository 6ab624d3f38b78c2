"""`paceline usage`: what was used, and what it cost."""

import csv
import io
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, money, out, print_json
from paceline.v1 import usage_pb2

_COUNTS = ("num_requests", "num_prompt_tokens", "num_cached_tokens", "num_completion_tokens")
_DRAFT_COUNTS = ("num_drafted_tokens", "num_accepted_tokens")


class Group(StrEnum):
    """By what usage is told apart."""

    DAY = "day"
    KEY = "key"
    MODEL = "model"
    ADAPTER = "adapter"
    KIND = "kind"
    TENANT = "tenant"


def usage(
    address: Address = DEFAULT_ADDRESS,
    start: Annotated[str, typer.Option("--from", help="First day (UTC); default: the first of this month.")] = "",
    end: Annotated[str, typer.Option("--to", help="Last day (UTC); default: today.")] = "",
    by: Annotated[list[Group] | None, typer.Option(help="May be repeated; default: by day and model.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose, * for everybody's; takes a key of scope admin.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Prints comma-separated values.")] = False,
) -> None:
    """Shows tokens used and what they cost."""
    groups = [group.value for group in by or (Group.DAY, Group.MODEL)]
    with connected(address) as client:
        found = client.usage(start, end, groups, tenant)
    if as_json:
        print_json(found)
        return
    names = ["key_id" if group == "key" else group for group in groups]
    if as_csv:
        out.print(_csv(names, found), end="")
        return
    table = Table(*groups, box=None)
    for title in ("requests", "prompt", "cached", "output", "drafted", "accepted", f"cost, {found.currency}"):
        table.add_column(title, justify="right")
    setattr(found.total, names[0], "total")
    for row in (*found.rows, found.total):
        told = [str(getattr(row, name)) for name in names]
        table.add_row(*told, *_numbers(row), money(row.cost_nanos))
    out.print(table)


def _numbers(row: usage_pb2.UsageRow) -> list[str]:
    return [f"{getattr(row, name):,}" for name in (*_COUNTS, *_DRAFT_COUNTS)]


def _csv(names: list[str], found: usage_pb2.GetUsageResponse) -> str:
    """The rows, without the total, under the names that the protos have; costs in units of the currency."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *_COUNTS, *_DRAFT_COUNTS, "cost", "currency"])
    for row in found.rows:
        counts = [getattr(row, name) for name in (*names, *_COUNTS, *_DRAFT_COUNTS)]
        writer.writerow([*counts, f"{row.cost_nanos / 1e9:.9f}", found.currency])
    return text.getvalue()
