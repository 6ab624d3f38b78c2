"""`paceline chat`: a conversation."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast

import typer

from paceline import ChatOptions, Message, PacelineError, SyncClient
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
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, connected, err, fail, in_words, out

_HELP = """/reset   forgets the conversation
/exit    ends, as Ctrl-D does
/help    shows this
Ctrl-C stops an answer; what was said so far stays."""
_MAX_HISTORY = 1000
T = TypeVar("T")


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
    """Talks to the model. /help says what else can be typed."""
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
    with connected(address) as client, _line_editing(_history_file()):
        while (said := _said()) not in (None, "/exit"):
            if said == "/reset":
                messages = list(beginning)
            elif said == "/help":
                err.print(_HELP)
            elif said and said.startswith("/"):
                err.print(f"there is no {said}; /help shows what there is", markup=False)
            elif said:
                question: Message = {"role": "user", "content": said}
                answer = _answer(client, address, [*messages, question], options, stats=stats)
                if answer is not None:
                    messages += [question, {"role": "assistant", "content": answer}]


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object of the command line."""
    try:
        read = json.loads(text or "{}")
    except ValueError as error:
        fail(f"--template-arguments: {error}")
    if not isinstance(read, dict):
        fail("--template-arguments: must be a JSON object")
    return read


def _answer(
    client: SyncClient, address: str, messages: list[Message], options: ChatOptions, *, stats: bool
) -> str | None:
    """The answer as far as it came; None when there is none, and the error has been said."""
    text: list[str] = []
    events = client.chat(messages, **options)
    try:
        with _interrupted() as interrupted:
            print_stream(_up_to(events, interrupted), stats=stats, text=text)
    except KeyboardInterrupt:
        out.print()
    except PacelineError as error:
        if text:
            out.print()
        err.print(in_words(error, address), style="red", markup=False)
        return "".join(text) or None
    finally:
        events.close()
    return "".join(text)


@contextlib.contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Remembers Ctrl-C: an exception that a signal raises amid a callback of C code is lost."""
    pressed = threading.Event()

    def press(*_: object) -> NoReturn:
        pressed.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _up_to(events: Iterable[T], interrupted: threading.Event) -> Iterator[T]:
    for event in events:
        if interrupted.is_set():
            raise KeyboardInterrupt
        yield event


@contextlib.contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Has lines edited and remembered from one conversation to the next, where the platform can."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_MAX_HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)


def _history_file() -> Path:
    """Where lines are remembered: among the user's data (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "paceline" / "chat_history"


def _said() -> str | None:
    """The next line of the user's; None at the end. Ctrl-C begins the line anew."""
    while True:
        try:
            # The prompt is the reader's to print: it has to know where the line begins that is edited.
            return input("> ").strip()
        except EOFError:
            err.print()
            return None
        except KeyboardInterrupt:
            err.print("\nCtrl-D or /exit ends")
