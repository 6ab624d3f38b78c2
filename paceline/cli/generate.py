"""`paceline generate`: a prompt continued."""

import sys
from typing import Annotated

import typer

from paceline.cli.sampling import (
    Adapter,
    BadWords,
    IgnoreEos,
    MaxTokens,
    MinTokens,
    Model,
    NoSpeculation,
    Seed,
    SpecialTokens,
    Stats,
    Stop,
    StopTokenIds,
    Temperature,
    TopK,
    TopP,
    print_stream,
    request_options,
)
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, connected, fail


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to continue; left out or -: what standard input holds.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    adapter: Adapter = "",
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_tokens: MaxTokens = 256,
    stop: Stop = None,
    stop_token_ids: StopTokenIds = None,
    min_tokens: MinTokens = None,
    bad_words: BadWords = None,
    special_tokens: SpecialTokens = False,
    ignore_eos: IgnoreEos = False,
    no_speculation: NoSpeculation = False,
    stats: Stats = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints every event as a line of JSON.")] = False,
) -> None:
    """Continues a prompt and streams the text."""
    if prompt is None and sys.stdin.isatty():
        fail('what is to be continued? paceline generate "def fibonacci(n):"')
    text = sys.stdin.read() if prompt is None or prompt == "-" else prompt
    options = request_options(
        model=model,
        adapter=adapter,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        stop_token_ids=stop_token_ids,
        min_tokens=min_tokens,
        bad_words=bad_words,
        special_tokens=special_tokens,
        ignore_eos=ignore_eos,
        no_speculation=no_speculation,
    )
    with connected(address) as client:
        print_stream(client.generate(text, **options), stats=stats, as_json=as_json)
