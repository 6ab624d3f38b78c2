"""`paceline models`: what a gateway serves."""

from rich.table import Table

from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, out, print_json


def models(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Lists the models that a gateway serves."""
    with connected(address) as client:
        found = client.list_models()
    if as_json:
        print_json(found)
        return
    table = Table("id", "role", "architecture", "parameters", "context", "dtype", "device", box=None)
    for model in found:
        for role, info in (("target", model.target), ("draft", model.draft)):
            if info.id:
                table.add_row(
                    info.id,
                    role,
                    info.architecture,
                    f"{info.num_parameters / 1e6:.1f} M",
                    str(info.max_context_tokens),
                    info.dtype,
                    info.device,
                )
    out.print(table)
