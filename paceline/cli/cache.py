"""`paceline cache`: a caller's share of the prefix cache."""

import typer
from rich.table import Table

from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, out, print_json

cache = typer.Typer(no_args_is_help=True, help="Your share of the prefix cache.")


@cache.command()
def stats(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Shows what is kept of your prompts, and how much of it was of use."""
    with connected(address) as client:
        found = client.cache_statistics()
    if as_json:
        print_json(found)
        return
    table = Table("tier", "blocks", "MB", "of", "hits", "evicted", "corrupt", box=None)
    for tier in found.tiers:
        table.add_row(
            tier.tier,
            str(tier.num_blocks),
            f"{tier.num_bytes / 1e6:.1f}",
            f"{found.quota_bytes / 1e6:.0f}",
            str(tier.num_hits),
            str(tier.num_evictions),
            str(tier.num_corrupt),
        )
    out.print(table)
    asked = found.num_misses + sum(tier.num_hits for tier in found.tiers)
    rate = f"{1 - found.num_misses / asked:.0%}" if asked else "none asked for"
    out.print(f"hit rate {rate}, misses {found.num_misses}")


@cache.command()
def clear(address: Address = DEFAULT_ADDRESS) -> None:
    """Deletes everything that is kept of your prompts."""
    with connected(address) as client:
        out.print(f"{client.clear_cache()} blocks deleted")
