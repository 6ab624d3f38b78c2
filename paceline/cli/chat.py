"""`paceline chat`: a conversation."""

import json
from typing import Annotated, Any, cast

import typer

from paceline import ChatOptions, Message
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
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, connected, err, fail


def chat(
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    adapter: Adapter = "",
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
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
    template_arguments: Annotated[
        str | None, typer.Option(help="Arguments of the chat template as JSON, e.g. '{\"enable_thinking\": false}'.")
    ] = None,
    no_speculation: NoSpeculation = False,
    stats: Stats = False,
) -> None:
    """Talks to the model. /reset forgets the conversation, /exit or Ctrl-D ends."""
    common = request_options(
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
    options = cast("ChatOptions", {**common, "template_arguments": _object(template_arguments)})
    beginning: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    with connected(address) as client:
        while (said := _said()) not in (None, "/exit"):
            if said == "/reset":
                messages = list(beginning)
            elif said:
                messages.append({"role": "user", "content": said})
                answer = print_stream(client.chat(messages, **options), stats=stats)
                messages.append({"role": "assistant", "content": answer})


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object of the command line."""
    try:
        read = json.loads(text or "{}")
    except ValueError as error:
        fail(f"--template-arguments: {error}")
    if not isinstance(read, dict):
        fail("--template-arguments: must be a JSON object")
    return read


def _said() -> str | None:
    """The next line of the user's; None at the end."""
    try:
        return err.input("[bold cyan]> [/]").strip()
    except EOFError:
        return None
