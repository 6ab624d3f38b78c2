"""`paceline demo`: an assistant answers live; if asked, what a draft is worth that knows its target well."""

import asyncio
import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from paceline import Client, Message, PacelineError
from paceline.cli.serve import ENGINE, reach
from paceline.cli.side_by_side import Asked, Run, measured, show_key, show_table, told
from paceline.cli.terminal import fail, out

QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that says whether a number is prime.",
    "Give me five tips for learning a new language.",
)
"""Each is asked with speculation first: the other way round, an answer would be known by heart."""
_ADAPTER, _ADAPTED_QUESTION = "pirate", "Who are you, and what do you do all day?"
_MAX_TOKENS = 96
SOURCES = (
    '''import os


class TemporaryFolder:
    """Create a folder, and remove it when it is no longer needed."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
''',
    '''import json


def read_settings(path, default=None):
    """Return the settings in a file, or the default when there is none."""
''',
    '''import socket


def is_open(host, port, timeout=None):
    """Tell whether somebody listens on a port."""
''',
)
"""Beginnings of Python source. The first is shown as it goes on."""
_SOURCE_TOKENS = 64
_WARM_UP = ("Say hello.", "def main():\n")
_WARM_UP_TOKENS = 16
_PYTHON = "python"


def demo(
    python_pair: Annotated[
        bool,
        typer.Option("--python-pair", help="Shows a draft that knows its target well, too: some 10 seconds more."),
    ] = False,
) -> None:
    """Asks the assistant three questions, one more with an adapter, and shows what its draft is worth."""
    reach(ENGINE)
    from services.local.errors import LaunchError

    try:
        raise typer.Exit(asyncio.run(_demo(python_pair=python_pair)))
    except (LaunchError, PacelineError) as error:
        fail(str(error))


async def _demo(*, python_pair: bool) -> int:
    """Returns 0, or 1 when speculation changed a text."""
    from services.local.launcher import running
    from services.local.pair import ASSISTANT, Pair, named, shipped_adapters, shipped_model
    from services.local.system import SystemSettings
    from services.local.usual import build_usual

    began = time.monotonic()
    async with contextlib.AsyncExitStack() as resources:
        resources.callback(gc.enable)
        gc.disable()  # Until all is imported: nothing of it is garbage.
        with out.status("starting verifier and gateway"):
            model, draft = named(ASSISTANT)
            # Each draft runs in its target's process, on the same cores.
            cores = os.cpu_count() or 1
            pairs = [Pair(id=ASSISTANT, model=model, draft=draft, threads=cores, draft_process=False)]
            if python_pair:
                folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="paceline-demo-"))
                usual, small = build_usual(Path(folder) / _PYTHON), shipped_model("draft")
                pairs.append(Pair(id=_PYTHON, model=usual, draft=small, threads=cores, draft_process=False))
            settings = SystemSettings(tuple(pairs), log_level="WARNING", adapter_store=True)
            launcher = await resources.enter_async_context(running(settings))
            client = await resources.enter_async_context(Client(launcher.address()))
        gc.enable()
        out.print(f"{ASSISTANT}, ready after {time.monotonic() - began:.0f} s\n", style="dim")
        await client.upload_adapter(shipped_adapters()[_ADAPTER], _ADAPTER, model=ASSISTANT)
        answers = await ask_all(client, ASSISTANT)
        return report(answers, await continue_all(client, _PYTHON) if python_pair else ())


async def ask_all(client: Client, model: str) -> list[Asked]:
    """Asks every question with speculation, live, and then without."""
    for speculation in (True, False):
        await _ask(client, model, _WARM_UP[0], speculation=speculation, max_tokens=_WARM_UP_TOKENS)
    asked: list[Asked] = []
    for question, adapter in (*((question, "") for question in QUESTIONS), (_ADAPTED_QUESTION, _ADAPTER)):
        out.rule(f"{question}{f' (with the adapter {adapter})' if adapter else ''}", align="left")
        on = await _ask(client, model, question, speculation=True, adapter=adapter, is_shown=True)
        with out.status("the same without speculation"):
            off = await _ask(client, model, question, speculation=False, adapter=adapter)
        asked.append(Asked(question, on, off))
        out.print(f"\n\n{told(asked[-1])}\n", style="dim")
    show_key()
    return asked


async def continue_all(client: Client, model: str) -> list[Asked]:
    """Has every source continued both ways; the first is shown."""
    (size,) = (found.target.num_parameters for found in await client.list_models() if found.target.id == model)
    out.rule("a draft that knows its target well", align="left")
    out.print(
        "The target was made a moment ago: it says what a small model of Python source says, at the cost of the "
        f"{size / 1e6:.0f} million parameters that it has.\n",
        style="dim",
    )
    for speculation in (True, False):
        await _continue(client, model, _WARM_UP[1], speculation=speculation, max_tokens=_WARM_UP_TOKENS)
    out.print(SOURCES[0], end="", style="dim")
    asked: list[Asked] = []
    for number, source in enumerate(SOURCES):
        on = await _continue(client, model, source, speculation=True, is_shown=not number)
        if not number:
            out.print("\n")
        with out.status("measuring on more texts"):
            off = await _continue(client, model, source, speculation=False)
        asked.append(Asked(source.splitlines()[0], on, off))
    return asked


async def _ask(
    client: Client,
    model: str,
    question: str,
    *,
    speculation: bool,
    adapter: str = "",
    max_tokens: int = _MAX_TOKENS,
    is_shown: bool = False,
) -> Run:
    messages: list[Message] = [{"role": "user", "content": question}]
    events = client.chat(
        messages, model=model, adapter=adapter, max_tokens=max_tokens, temperature=0, speculation=speculation
    )
    return await measured(events, is_shown=is_shown)


async def _continue(
    client: Client,
    model: str,
    source: str,
    *,
    speculation: bool,
    max_tokens: int = _SOURCE_TOKENS,
    is_shown: bool = False,
) -> Run:
    events = client.generate(
        source, model=model, max_tokens=max_tokens, temperature=0, ignore_eos=True, speculation=speculation
    )
    return await measured(events, is_shown=is_shown)


def report(answers: Sequence[Asked], sources: Sequence[Asked]) -> int:
    """Prints what texts came to, and what to type next. Returns 0, or 1 when some differ."""
    assistant = show_table(answers, "The assistant")
    said = f"\nWith its draft the assistant is {assistant:.2f} times as fast as without"
    if sources:
        out.print()
        known = show_table(sources, "A draft that knows its target well")
        said += f"; with one that is small beside its target, and knows it well, texts come {known:.2f} times as fast"
    out.print(f"{said}.", highlight=False)
    out.print("Next: `paceline up` here, and `paceline chat` in another terminal.", highlight=False)
    return 0 if all(each.is_same for each in (*answers, *sources)) else 1
