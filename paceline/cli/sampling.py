"""Options of the commands that have text made, and how a stream is printed."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, cast

import typer
from google.protobuf.json_format import MessageToDict

from paceline import Options
from paceline.cli.terminal import err, out
from paceline.v1.inference_pb2 import ChatResponse, GenerateResponse, Usage

Model = Annotated[str, typer.Option(help="Id of the model; may be left out where only one is served.")]
Adapter = Annotated[str, typer.Option(help="Name of one of your adapters; left out: the model as it is.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Keeps the likeliest tokens that add up to this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keeps this many likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same tokens.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to produce.")]
Stop = Annotated[list[str] | None, typer.Option(help="Ends the text before this string; may be repeated.")]
StopTokenIds = Annotated[
    list[int] | None, typer.Option("--stop-token-id", help="Ends the text at this token; may be repeated.")
]
MinTokens = Annotated[int | None, typer.Option(help="Tokens before which nothing but --max-tokens ends the text.")]
BadWords = Annotated[list[str] | None, typer.Option("--bad-word", help="Never produces this; may be repeated.")]
SpecialTokens = Annotated[bool, typer.Option("--special-tokens", help="Shows special tokens in the text.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Goes on past end-of-sequence tokens.")]
NoSpeculation = Annotated[bool, typer.Option("--no-speculation", help="Leaves the draft out.")]
Stats = Annotated[bool, typer.Option("--stats", help="Prints speed and acceptance at the end.")]


def request_options(*, no_speculation: bool, special_tokens: bool, ignore_eos: bool, **given: Any) -> Options:
    """What was said on the command line, without what was left out."""
    options = {name: value for name, value in given.items() if value not in (None, "", [])}
    if special_tokens:
        options["skip_special_tokens"] = False
    if ignore_eos:
        options["ignore_eos"] = True
    return cast("Options", {**options, "speculation": not no_speculation})


def print_stream(
    events: Iterable[GenerateResponse | ChatResponse],
    *,
    stats: bool,
    as_json: bool = False,
    text: list[str] | None = None,
) -> None:
    """Prints a stream as it comes; the text of its first choice is appended to `text` as it comes too."""
    for event in events:
        if as_json:
            out.print(json.dumps(MessageToDict(event, preserving_proto_field_name=True)))
        elif event.HasField("delta") and event.delta.choice == 0:
            out.print(event.delta.text, end="")
            if text is not None:
                text.append(event.delta.text)
        elif event.HasField("usage"):
            out.print()
            if stats:
                err.print(_in_one_line(event.usage), style="dim")


def _in_one_line(usage: Usage) -> str:
    rate = usage.num_completion_tokens / usage.total_seconds if usage.total_seconds else 0.0
    accepted = f"{usage.num_accepted_tokens / usage.num_drafted_tokens:.0%}" if usage.num_drafted_tokens else "none"
    return (
        f"{usage.num_completion_tokens} tokens in {usage.total_seconds:.2f} s ({rate:.1f} tokens/s), first after "
        f"{usage.time_to_first_token_seconds * 1e3:.0f} ms, {usage.num_rounds} rounds, acceptance {accepted}"
    )
