"""`paceline models`: what a gateway serves."""

from rich.table import Table

from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, err, money, out, print_json


def models(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Lists the models that a gateway serves."""
    with connected(address) as client:
        found = client.list_models()
    if as_json:
        print_json(found)
        return
    columns = ("id", "role", "architecture", "parameters", "context", "dtype", "device")
    table = Table(*columns, "per million: prompt", "cached", "output", "adapters", box=None)
    for model in found:
        if not model.available:
            table.add_row(model.target.id, "unavailable")
            continue
        prices = model.prices
        amounts = [prices.prompt_nanos, prices.cached_nanos, prices.completion_nanos]
        known = [f"{money(amount)} {prices.currency}" if model.HasField("prices") else "" for amount in amounts]
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
                    *([*known, " ".join(model.adapters)] if role == "target" else []),
                )
    out.print(table)
    for model in found:
        if model.draft_problem:
            err.print(f"{model.target.id}: its draft is not used: {model.draft_problem}", style="yellow", markup=False)
