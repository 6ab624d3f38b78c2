"""`paceline webhooks`: where you are told when batches have ended."""

from typing import Annotated

import typer
from rich.table import Table

from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, day, err, out, print_json

webhooks = typer.Typer(no_args_is_help=True, help="Addresses that are told when batches have ended.")
WebhookId = Annotated[str, typer.Argument(help="Id of the webhook.")]


@webhooks.command()
def create(
    url: Annotated[str, typer.Argument(help="Where messages go: https://...")], address: Address = DEFAULT_ADDRESS
) -> None:
    """Makes a webhook and prints the secret of its signatures, this once."""
    with connected(address) as client:
        made = client.create_webhook(url)
        _show_secret(made.webhook.id, made.secret)


@webhooks.command()
def rotate(
    webhook_id: WebhookId,
    address: Address = DEFAULT_ADDRESS,
    hours: Annotated[float, typer.Option(help="How long messages are signed with both secrets.")] = 24,
) -> None:
    """Makes another secret and prints it, this once."""
    with connected(address) as client:
        made = client.rotate_webhook(webhook_id, hours * 3600)
        _show_secret(made.webhook.id, made.secret)


@webhooks.command()
def delete(webhook_id: WebhookId, address: Address = DEFAULT_ADDRESS) -> None:
    """Deletes a webhook, with what waits to be sent to it."""
    with connected(address) as client:
        client.delete_webhook(webhook_id)
        out.print(f"{webhook_id} deleted")


@webhooks.command("list")
def list_webhooks(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Lists webhooks, without their secrets."""
    with connected(address) as client:
        found = client.list_webhooks()
    if as_json:
        print_json(found)
        return
    table = Table("id", "url", "made", "waiting", "state", box=None)
    for each in found:
        state = f"disabled {day(each.disable_time)}" if each.HasField("disable_time") else each.last_error or "works"
        table.add_row(each.id, each.url, day(each.create_time), f"{each.num_waiting:,}", state)
    out.print(table)


def _show_secret(webhook_id: str, secret: str) -> None:
    """The secret alone on standard output, for scripts."""
    err.print(f"secret of {webhook_id}; it is not shown again:", markup=False)
    out.print(secret)
