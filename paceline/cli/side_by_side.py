"""The same text with speculation and without: measured, told in a line, and shown in colours as it comes."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from paceline.cli.terminal import out
from paceline.v1.inference_pb2 import Delta

_ACCEPTED = "green"
_OWN = "bold"


class Run(NamedTuple):
    """One measured text."""

    token_ids: list[int]
    seconds: float
    """From the first token to the last."""
    drafted: int
    accepted: int

    @property
    def tokens_per_second(self) -> float:
        """Behind the first token."""
        return _speed([self])


class Asked(NamedTuple):
    """What was asked, and the text both ways."""

    question: str
    on: Run
    off: Run

    @property
    def ratio(self) -> float:
        """What speculation gained."""
        return _ratio([self])

    @property
    def is_same(self) -> bool:
        """Whether both texts are the same, token for token."""
        return self.on.token_ids == self.off.token_ids


async def measured(events: AsyncIterator[Any], *, is_shown: bool = False) -> Run:
    """Reads a stream to its end."""
    token_ids: list[int] = []
    usage = None
    async for event in events:
        token_ids.extend(event.delta.token_ids)
        if is_shown:
            show(event.delta)
        if event.HasField("usage"):
            usage = event.usage
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    seconds = usage.total_seconds - usage.time_to_first_token_seconds
    return Run(token_ids, seconds, usage.num_drafted_tokens, usage.num_accepted_tokens)


def show(delta: Delta) -> None:
    """Prints the text of a delta: what came with accepted tokens in one colour, the target's own in another."""
    accepted, own = delta.text[: delta.num_accepted_characters], delta.text[delta.num_accepted_characters :]
    if accepted:
        out.print(accepted, style=_ACCEPTED, end="")
    if own:
        out.print(own, style=_OWN, end="")


def show_key() -> None:
    """Says what the colours mean."""
    out.print("green", style=_ACCEPTED, end="")
    out.print(" was proposed by the draft and accepted by the target, ", end="")
    out.print("bold", style=_OWN, end="")
    out.print(" is what the target decided itself\n")


def told(asked: Asked) -> str:
    """What came of a question, in a line."""
    same = "the same words" if asked.is_same else "OTHER WORDS"
    speeds = f"{asked.on.tokens_per_second:.0f} tokens/s, without speculation {asked.off.tokens_per_second:.0f}"
    return f"{speeds}: {asked.ratio:.2f} times as fast, {same}"


def show_table(asked: Sequence[Asked], title: str) -> float:
    """Prints what texts came to, and returns how many times as fast all of them together came with speculation."""
    table = Table(box=None, title=f"{title}; greedy, tokens a second behind the first", title_justify="left")
    table.add_column("asked")
    for name in ("off", "on", "on / off", "accepted of proposed", "same words"):
        table.add_column(name, justify="right")
    for each in asked:
        share = f"{each.on.accepted / each.on.drafted:.0%}" if each.on.drafted else "-"
        speeds = (f"{run.tokens_per_second:.0f}" for run in (each.off, each.on))
        table.add_row(each.question, *speeds, f"{each.ratio:.2f}", share, "yes" if each.is_same else "NO")
    out.print(table)
    return _ratio(asked)


def _ratio(asked: Sequence[Asked]) -> float:
    on, off = _speed([each.on for each in asked]), _speed([each.off for each in asked])
    return on / off if off else 1.0


def _speed(runs: Sequence[Run]) -> float:
    """Tokens a second over all of them, behind the first tokens."""
    seconds = sum(run.seconds for run in runs)
    return sum(len(run.token_ids) - 1 for run in runs) / seconds if seconds > 0 else 0.0
