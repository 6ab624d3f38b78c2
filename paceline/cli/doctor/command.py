"""`paceline doctor`: what is wrong with a running system, and what to do."""

import json
from collections import Counter
from collections.abc import Sequence

import typer
from rich.text import Text

from paceline import PacelineError
from paceline.cli.doctor.finding import Finding, Mark, wrong
from paceline.cli.doctor.model_checks import check_models
from paceline.cli.doctor.report import ask
from paceline.cli.doctor.system_checks import check_system
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, in_words, out

_COLOURS = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.WRONG: "red"}
_MARK_WIDTH = max(map(len, Mark))


def doctor(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Checks a running system end to end and says what is wrong and what to do; ends with 1 where something is."""
    found = _examine(address)
    if as_json:
        plain = [{"check": each.check, "mark": each.mark, "says": each.says, "do": each.do} for each in found]
        out.print(json.dumps({"ok": not _is_ill(found), "findings": plain}, indent=2))
    else:
        _show(found)
    if _is_ill(found):
        raise typer.Exit(1)


def _examine(address: str) -> list[Finding]:
    with connected(address) as client:
        try:
            report = ask(client, address)
        except PacelineError as error:
            return [_no_gateway(error, address)]
    return [*check_system(report), *check_models(report)]


def _no_gateway(error: PacelineError, address: str) -> Finding:
    says, _, do = in_words(error, address).partition("; ")
    return wrong("gateway", says, do or "look at the gateway's log")


def _is_ill(found: Sequence[Finding]) -> bool:
    return any(each.mark is Mark.WRONG for each in found)


def _show(found: Sequence[Finding]) -> None:
    width = max(len(each.check) for each in found)
    for each in found:
        line = Text(f"{each.mark:<{_MARK_WIDTH}}  ", _COLOURS[each.mark])
        out.print(line + Text(f"{each.check:<{width}}  {each.says}", "default"))
        if each.do:
            out.print(Text(f"{'':<{_MARK_WIDTH + width + 4}}{each.do}", "dim"))
    counts = Counter(each.mark for each in found)
    out.print(f"{len(found)} checks: {counts[Mark.WRONG]} wrong, {counts[Mark.WARNING]} warnings")
