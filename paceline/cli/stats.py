"""`paceline stats`: where speculation pays, by what verifiers measured, and why it is on or off."""

import time
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paceline import SyncClient
from paceline.cli.sampling import Model
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, fail, out, print_json
from paceline.v1 import model_pb2

_WATCH_SECONDS = 2.0
_WAYS = {
    model_pb2.SPECULATION_WAY_OFF: "off",
    model_pb2.SPECULATION_WAY_TEXT: "text",
    model_pb2.SPECULATION_WAY_DRAFT: "draft",
}
_SHOWN_DIGITS = 12


def stats(
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Goes on showing them until Ctrl-C.")] = False,
) -> None:
    """Shows where speculation pays, by load: measured tokens a second relative to none, and what was decided."""
    if as_json and watch:
        fail("--json and --watch exclude each other")
    with connected(address) as client:
        if as_json:
            print_json(_ask(client, model))
        elif watch:
            with Live(_shown(_ask(client, model)), console=out) as live:
                while True:
                    time.sleep(_WATCH_SECONDS)
                    live.update(_shown(_ask(client, model)))
        else:
            out.print(_shown(_ask(client, model)))


def _ask(client: SyncClient, model: str) -> list[model_pb2.GetSpeculationResponse]:
    """What is known of one model, or of all that can be asked for."""
    names = [model] if model else [found.target.id for found in client.list_models() if found.available]
    return [client.get_speculation(name) for name in names]


def _shown(found: list[model_pb2.GetSpeculationResponse]) -> Group:
    table = Table("model", "verifier", "rows", "draft", "now", "text / off", "draft / off", "rounds", box=None)
    lines: list[Text] = []
    for response in found:
        for number, state in enumerate(response.verifiers, 1):
            for load in state.loads:
                table.add_row(response.model, str(number), *_cells(load))
            lines.extend(_lines(f"{response.model}, verifier {number}", state))
        lines.append(_audit(response))
    return Group(table if table.row_count else Text("nothing was measured yet"), *lines)


def _audit(response: model_pb2.GetSpeculationResponse) -> Text:
    audit = response.audit
    if not audit.num_tokens:
        looked = (
            f"{audit.share:.2%} of requests are computed once more without speculation" if audit.share else "is off"
        )
        return Text(
            f"{response.model}: parity audit: {looked}; nothing was compared yet"
            if audit.share
            else f"{response.model}: parity audit {looked}"
        )
    rate = 10_000 * audit.num_mismatches / audit.num_tokens
    return Text(
        f"{response.model}: parity audit: of {audit.num_tokens:,} tokens computed once more without speculation "
        f"{audit.num_mismatches:,} differed: {rate:.2f} in 10,000",
        style="bold red" if audit.num_mismatches else "",
    )


def _cells(load: model_pb2.SpeculationLoad) -> list[str]:
    ratios = {ratio.way: f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" for ratio in load.ratios}
    by_way = [ratios.get(way, "-") for way in (model_pb2.SPECULATION_WAY_TEXT, model_pb2.SPECULATION_WAY_DRAFT)]
    draft = load.draft_revision_digest[:_SHOWN_DIGITS] or "none"
    return [str(load.num_rows), draft, _WAYS.get(load.way, "?"), *by_way, str(load.num_rounds)]


def _lines(place: str, state: model_pb2.SpeculationState) -> list[Text]:
    lost = state.lost_seconds / state.measured_seconds if state.measured_seconds else 0.0
    summary = (
        f"{place}: {state.measured_seconds:.0f} s measured; trials lost {lost:.2%} of them and may lose "
        f"{max(0.0, state.account_seconds):.2f} s more; deciding takes {state.off_tax:.2%} of the time while it is off"
    )
    decisions = [
        Text(f"  {datetime.fromtimestamp(decision.at_seconds):%H:%M:%S} {decision.reason}", style="dim")
        for decision in state.decisions
    ]
    return [Text(summary), *decisions]
