"""The `paceline` command."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from paceline.cli.adapters import adapters
from paceline.cli.cache import cache
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, err, fail, out
from paceline.cli.terminal import run as run_command
from paceline.client import ChatResponse, Client, GenerateResponse, Options
from services.local.system import LaunchError, StackSettings, data_folder, shipped_model

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cache, name="cache")
app.add_typer(adapters, name="adapters")
Model = Annotated[str, typer.Option(help="Id of the model; may be left out where only one is served.")]
Adapter = Annotated[str, typer.Option(help="Name of one of your adapters; left out: the model as it is.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Keeps the likeliest tokens that add up to this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keeps this many likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same tokens.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to produce.")]
Stop = Annotated[list[str] | None, typer.Option(help="Ends the text before this string; may be repeated.")]
NoSpeculation = Annotated[bool, typer.Option("--no-speculation", help="Leaves the draft out.")]
Stats = Annotated[bool, typer.Option("--stats", help="Prints speed and acceptance at the end.")]


@app.command()
def up(
    model: Annotated[str | None, typer.Option(help="Target: folder or hub id. Default: the pair that ships.")] = None,
    draft_model: Annotated[str | None, typer.Option(help="Draft: folder or hub id.")] = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="Starts no draft.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(help="Port of the gateway.")] = 7100,
    draft_port: Annotated[int, typer.Option(help="Port of the draft.")] = 7101,
    verifier_port: Annotated[int, typer.Option(help="Port of the verifier.")] = 7102,
    no_prefix_cache: Annotated[bool, typer.Option("--no-prefix-cache", help="Starts no prefix cache.")] = False,
    prefix_cache_port: Annotated[int, typer.Option(help="Port of the prefix cache.")] = 7103,
    cache_folder: Annotated[str | None, typer.Option(help="Keeps computed prompts in this folder too.")] = None,
    no_adapters: Annotated[bool, typer.Option("--no-adapters", help="Starts no adapter store.")] = False,
    adapter_store_port: Annotated[int, typer.Option(help="Port of the adapter store.")] = 7104,
    adapter_folder: Annotated[
        str | None, typer.Option(help="Keeps adapters in this folder; default: among your user's data.")
    ] = None,
    threads_verifier: Annotated[int | None, typer.Option(help="CPU threads; default: divided by the launcher.")] = None,
    threads_draft: Annotated[int | None, typer.Option(help="CPU threads; default: divided by the launcher.")] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Keeps draft, verifier, prefix cache, adapter store and gateway running in this terminal until Ctrl-C."""
    from services.local.up import keep_running

    if draft_model is None and model is None and not no_draft:
        draft_model = _shipped("draft")
    settings = StackSettings(
        model=model or _shipped("target"),
        draft_model=None if no_draft else draft_model,
        host=host,
        gateway_port=gateway_port,
        draft_port=draft_port,
        verifier_port=verifier_port,
        prefix_cache=not no_prefix_cache,
        prefix_cache_port=prefix_cache_port,
        cache_folder=cache_folder,
        adapter_store=not no_adapters,
        adapter_store_port=adapter_store_port,
        adapter_folder=adapter_folder or str(data_folder() / "adapters"),
        device=device,
        dtype=dtype,
        verifier_threads=threads_verifier,
        draft_threads=threads_draft,
        log_level=log_level,
        restart=True,
    )
    raise typer.Exit(asyncio.run(keep_running(settings, err)))


@app.command()
def demo() -> None:
    """Starts everything, streams completions with and without adapters, and compares speculation on and off."""
    from paceline.cli.demo import run_demo

    settings = StackSettings(
        model=_shipped("target"), draft_model=_shipped("draft"), adapter_store=True, log_level="WARNING"
    )
    try:
        raise typer.Exit(asyncio.run(run_demo(settings, out)))
    except LaunchError as error:
        fail(str(error))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue; - reads standard input.")],
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    adapter: Adapter = "",
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    no_speculation: NoSpeculation = False,
    stats: Stats = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints every event as a line of JSON.")] = False,
) -> None:
    """Continues a prompt and streams the text."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options = _options(model, adapter, temperature, top_p, top_k, seed, max_tokens, stop, no_speculation)

    async def run() -> None:
        async with Client(address) as client:
            await _print_stream(client.generate(text, **options), stats=stats, as_json=as_json)

    run_command(run)


@app.command()
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
    options = _options(model, adapter, temperature, top_p, top_k, seed, max_tokens, stop, no_speculation)
    beginning = [("system", system)] if system else []

    async def run() -> None:
        messages = list(beginning)
        async with Client(address) as client:
            while True:
                try:
                    said = (await asyncio.to_thread(err.input, "[bold cyan]> [/]")).strip()
                except EOFError:
                    return
                if said == "/exit":
                    return
                if said == "/reset":
                    messages = list(beginning)
                elif said:
                    messages.append(("user", said))
                    answer = await _print_stream(client.chat(messages, **options), stats=stats, as_json=False)
                    messages.append(("assistant", answer))

    run_command(run)


@app.command()
def models(address: Address = DEFAULT_ADDRESS) -> None:
    """Lists the models that a gateway serves."""

    async def run() -> None:
        async with Client(address) as client:
            table = Table("id", "role", "architecture", "parameters", "context", "dtype", "device", box=None)
            for model in await client.list_models():
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

    run_command(run)


async def _print_stream(
    events: AsyncIterator[GenerateResponse] | AsyncIterator[ChatResponse], *, stats: bool, as_json: bool
) -> str:
    """Prints a stream as it comes and returns the text of its first choice."""
    from google.protobuf.json_format import MessageToDict

    text: list[str] = []
    async for event in events:
        if as_json:
            out.print(json.dumps(MessageToDict(event, preserving_proto_field_name=True)))
        elif event.HasField("delta") and event.delta.choice == 0:
            out.print(event.delta.text, end="")
            text.append(event.delta.text)
        elif event.HasField("usage"):
            out.print()
            if stats:
                err.print(describe_usage(event.usage), style="dim")
    return "".join(text)


def describe_usage(usage: Any) -> str:
    """One line about speed and acceptance."""
    rate = usage.num_completion_tokens / usage.total_seconds if usage.total_seconds else 0.0
    accepted = f"{usage.num_accepted_tokens / usage.num_drafted_tokens:.0%}" if usage.num_drafted_tokens else "none"
    return (
        f"{usage.num_completion_tokens} tokens in {usage.total_seconds:.2f} s ({rate:.1f} tokens/s), first after "
        f"{usage.time_to_first_token_seconds * 1e3:.0f} ms, {usage.num_rounds} rounds, acceptance {accepted}"
    )


def _options(
    model: str,
    adapter: str,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    max_tokens: int | None,
    stop: list[str] | None,
    no_speculation: bool,
) -> Options:
    given: dict[str, Any] = {
        "model": model or None,
        "adapter": adapter or None,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": stop or None,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options["speculation"] = not no_speculation
    return cast("Options", options)


def _shipped(name: str) -> str:
    try:
        return shipped_model(name)
    except LaunchError as error:
        fail(str(error))


if __name__ == "__main__":
    app()
