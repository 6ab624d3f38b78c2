"""`paceline bench`: what a running system gives with speculation and without, by number of streams."""

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from paceline.cli.bench.limit import StepSeconds, interpolated
from paceline.cli.bench.load import Run, run_streams
from paceline.cli.bench.prompts import Prompt, PromptsError, made_up, read_prompts
from paceline.cli.bench.report import as_json, plot, save_plot, tables
from paceline.cli.bench.summary import Summary, acceptance_of, summarize
from paceline.cli.sampling import Adapter, Model
from paceline.cli.terminal import (
    API_KEY,
    DEFAULT_ADDRESS,
    INTERRUPTED,
    Address,
    AsJson,
    err,
    fail,
    in_words,
    out,
    tls_of,
)
from paceline.client import Client
from paceline.errors import PacelineError
from paceline.requests import Options
from paceline.v1.model_pb2 import Model as ModelMessage
from paceline.v1.model_pb2 import ModelInfo

_MOST_STREAMS = 1024


class _Load(NamedTuple):
    """What is asked of the system."""

    streams: list[int]
    repeats: int
    options: Options
    prompts: list[Prompt]
    """Of a file; none: made-up ones."""
    num_prompt_tokens: int
    prompt_seed: int

    @property
    def num_prompts(self) -> int:
        """One a stream of each pair of runs, and the first to warm up."""
        return 1 + sum(self.streams) * self.repeats


def bench(
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    adapter: Adapter = "",
    prompts: Annotated[
        Path | None,
        typer.Option(help='File with a prompt a line: text, or {"prompt": ...}. Default: random tokens.'),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of random prompts.")] = 64,
    prompt_seed: Annotated[int | None, typer.Option(help="Repeats random prompts; default: new ones.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens that each stream produces.")] = 128,
    streams: Annotated[str, typer.Option(help="Numbers of streams at once, with commas.")] = "1,4,8",
    repeats: Annotated[
        int, typer.Option(min=1, help="Pairs of runs of each; with one alone, off finds its prompts computed.")
    ] = 4,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    as_json_text: AsJson = False,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Writes bars into this SVG file.")] = None,
) -> None:
    """Measures a running system with speculation and without: speed, latency, acceptance, and the limit of the pair."""
    options: Options = {"model": model, "adapter": adapter, "max_tokens": max_tokens, "temperature": temperature}
    options["ignore_eos"] = True
    try:
        given = read_prompts(prompts) if prompts else []
    except PromptsError as error:
        fail(str(error))
    seed = secrets.randbits(32) if prompt_seed is None else prompt_seed
    load = _Load(_numbers(streams), repeats, options, given, prompt_tokens, seed)
    if given and len(given) < load.num_prompts:
        err.print(f"{load.num_prompts} prompts are taken, the file has {len(given)}: some are asked again", style="dim")
    try:
        summaries = asyncio.run(_measure(address, load))
    except PacelineError as error:
        fail(in_words(error, address))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if plot_file is not None:
        try:
            save_plot(summaries, plot_file)
        except OSError as error:
            fail(f"{plot_file} cannot be written: {error.strerror}")
    if as_json_text:
        out.print(json.dumps({"address": address, "prompt_seed": seed, "runs": as_json(summaries)}, indent=2))
    else:
        out.print(tables(summaries))
        out.print(plot(summaries))


async def _measure(address: str, load: _Load) -> list[Summary]:
    async with Client(address, key=os.environ.get(API_KEY), tls=tls_of(address)) as client:
        found = _find(await client.list_models(), load.options["model"])
        verify, draft = _step_seconds(found.target), _step_seconds(found.draft)
        asked = _prompts(load, found)
        await run_streams(client, asked[:1], load.options)
        rest = iter(asked[1:])
        measured: dict[int, tuple[list[Run], list[Run]]] = {}
        with err.status("measuring") as status:
            for count in load.streams:
                on, off = measured.setdefault(count, ([], []))
                for repeat in range(load.repeats):
                    status.update(f"{count} streams, pair {repeat + 1} of {load.repeats}")
                    chosen = [next(rest) for _ in range(count)]
                    ways = [(on, True), (off, False)]
                    for runs, speculation in ways if repeat % 2 == 0 else reversed(ways):
                        runs.append(await run_streams(client, chosen, {**load.options, "speculation": speculation}))
        # To more streams only what is likelier is proposed: the fewest say best how often the draft is right.
        by_streams = (acceptance_of(on) for _, (on, _) in sorted(measured.items()))
        acceptance = next((found for found in by_streams if found is not None), None)
        return [summarize(on, off, verify, draft, acceptance) for on, off in measured.values()]


def _prompts(load: _Load, model: ModelMessage) -> list[Prompt]:
    if not load.prompts:
        vocab_size = model.target.vocab_size
        if vocab_size < 2:
            fail(f"the model {model.target.id!r} does not say its vocabulary; name a file of --prompts")
        return made_up(load.num_prompts, load.num_prompt_tokens, vocab_size, load.prompt_seed)
    return [load.prompts[place % len(load.prompts)] for place in range(load.num_prompts)]


def _find(models: Sequence[ModelMessage], name: str) -> ModelMessage:
    found = [model for model in models if not name or model.target.id == name]
    if not found:
        fail(f"no model {name!r} is served" if models else "no model is served")
    if len(found) > 1:
        fail(f"several models are served: name one of {', '.join(model.target.id for model in found)} with --model")
    return found[0]


def _step_seconds(info: ModelInfo) -> StepSeconds | None:
    """What a model's steps take, where it says so."""
    points = [(point.num_rows, point.seconds) for point in info.step_times if point.seconds > 0]
    return interpolated(points) if points else None


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(numbers) != len(text.split(",")) or not all(1 <= number <= _MOST_STREAMS for number in numbers):
        fail(f"--streams takes numbers from 1 to {_MOST_STREAMS} with commas between them, not {text!r}")
    return numbers
