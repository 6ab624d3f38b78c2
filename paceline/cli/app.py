"""The `paceline` command: its commands, a file each."""

from importlib.metadata import version
from typing import Annotated

import typer

from paceline.cli.adapters import adapters
from paceline.cli.batch import batch
from paceline.cli.bench.command import bench
from paceline.cli.cache import cache
from paceline.cli.certs import certs
from paceline.cli.chat import chat
from paceline.cli.demo import demo
from paceline.cli.doctor.command import doctor
from paceline.cli.encryption import encrypted
from paceline.cli.generate import generate
from paceline.cli.get import get
from paceline.cli.health import health
from paceline.cli.keys import keys
from paceline.cli.models import models
from paceline.cli.serve import serve
from paceline.cli.stats import stats
from paceline.cli.tenants import tenants
from paceline.cli.terminal import out
from paceline.cli.up import up
from paceline.cli.usage import usage
from paceline.cli.webhooks import webhooks

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, chat, models, usage, stats, doctor, health, up, get, demo, bench):
    app.command()(encrypted(command))
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(serve)
for group in (adapters, batch, cache, keys, tenants, webhooks):
    for registered in group.registered_commands:
        if registered.callback is not None:
            registered.callback = encrypted(registered.callback)
app.add_typer(adapters, name="adapters")
app.add_typer(batch, name="batch")
app.add_typer(cache, name="cache")
app.add_typer(certs, name="certs")
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")
app.add_typer(webhooks, name="webhooks")


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"paceline {version('paceline')}")
        raise typer.Exit


@app.callback()
def paceline(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Prints the version and ends.")
    ] = False,
) -> None:
    """Speculative decoding as a system of services: its commands for one machine, and a client."""
