"""`paceline chat`: a conversation."""

from typing import Annotated

import typer

from paceline import Message
from paceline.cli.sampling import (
    Adapter,
    MaxTokens,
    Model,
    NoSpeculation,
    Seed,
    Stats,
    Stop,
    Temperature,
    TopK,
    TopP,
    print_stream,
    request_options,
)
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, connected, err


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
    no_speculation: NoSpeculation = False,
    stats: Stats = False,
) -> None:
    """Talks to the model. /reset forgets the conversation, /exit or Ctrl-D ends."""
    options = request_options(
        model=model,
        adapter=adapter,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        no_speculation=no_speculation,
    )
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


def _said() -> str | None:
    """The next line of the user's; None at the end."""
    try:
        return err.input("[bold cyan]> [/]").strip()
    except EOFError:
        return None
