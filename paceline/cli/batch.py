"""`paceline batch`: many requests that need not be answered now."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from paceline.batches import Lines
from paceline.cli.terminal import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    connected,
    day,
    err,
    fail,
    money,
    nanos,
    out,
    print_json,
)
from paceline.v1 import batch_pb2

batch = typer.Typer(no_args_is_help=True, help="Batches of requests that need not be answered now.")
BatchId = Annotated[str, typer.Argument(help="Id of the batch.")]
File = Annotated[str, typer.Argument(help="JSON Lines in OpenAI's batch format; - reads standard input.")]
Hours = Annotated[float, typer.Option(help="What is not done after as many hours expires.")]
Key = Annotated[str, typer.Option(help="The same key again does not make another batch.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Most that it may cost.")]
_POLL_SECONDS = 1.0
_ENDED = ("completed", "cancelled", "expired", "failed")


class Kind(StrEnum):
    """Which lines."""

    ALL = "all"
    RESULTS = "results"
    ERRORS = "errors"


@batch.command()
def submit(
    file: File,
    address: Address = DEFAULT_ADDRESS,
    hours: Hours = 24,
    key: Key = "",
    budget: Budget = None,
    note: Annotated[list[str] | None, typer.Option(help="NAME=VALUE to keep with it; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Submits a batch and prints its id."""
    with connected(address) as client:
        made = client.create_batch(
            _lines(file),
            completion_seconds=hours * 3600,
            idempotency_key=key,
            max_cost_nanos=nanos(budget),
            metadata=_notes(note or []),
        )
        if as_json:
            print_json(made)
            return
        err.print(_estimated(made.estimate), markup=False)
        out.print(made.batch.id)


@batch.command()
def estimate(file: File, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Checks a batch and says what it would take at most; keeps nothing."""
    with connected(address) as client:
        made = client.create_batch(_lines(file), dry_run=True)
        if as_json:
            print_json(made.estimate)
        else:
            out.print(_estimated(made.estimate))


@batch.command()
def status(batch_id: BatchId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Shows how far a batch is."""
    with connected(address) as client:
        found = client.get_batch(batch_id)
    if as_json:
        print_json(found)
        return
    table = Table(box=None, show_header=False)
    table.add_row("state", _state(found))
    for name in ("total", "completed", "failed", "cancelled", "expired"):
        table.add_row(name, f"{getattr(found.counts, name):,}")
    table.add_row("output tokens", f"{found.usage.num_completion_tokens:,}")
    table.add_row("cost", money(found.usage.cost_nanos))
    if found.HasField("max_cost_nanos"):
        table.add_row("budget", money(found.max_cost_nanos))
    if found.retry_of:
        table.add_row("retry of", found.retry_of)
    for title in ("create", "accept", "start", "cancel", "end", "estimated_end", "expire"):
        if found.HasField(f"{title}_time"):  # type: ignore[arg-type]
            table.add_row(title.replace("_", " "), day(getattr(found, f"{title}_time")))
    for name, value in sorted(found.metadata.items()):
        table.add_row(name, value)
    out.print(table)


@batch.command()
def watch(batch_id: BatchId, address: Address = DEFAULT_ADDRESS) -> None:
    """Shows a bar until a batch has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with connected(address) as client:
        with Progress(*columns, console=err) as progress:
            task = progress.add_task(batch_id)
            while True:
                found = client.get_batch(batch_id)
                counts = found.counts
                ended = counts.completed + counts.failed + counts.cancelled + counts.expired
                progress.update(task, completed=ended, total=counts.total, description=_state(found))
                if _state(found) in _ENDED:
                    break
                time.sleep(_POLL_SECONDS)
        out.print(f"{_state(found)}: {counts.completed:,} of {counts.total:,} completed, {counts.failed:,} failed")


@batch.command()
def results(
    batch_id: BatchId,
    address: Address = DEFAULT_ADDRESS,
    kind: Annotated[Kind, typer.Option(help="Which lines.")] = Kind.ALL,
    finished: Annotated[bool, typer.Option("--finished", help="In the order in which they ended.")] = False,
    after: Annotated[str, typer.Option(help="The cursor after which to go on.")] = "",
    show_cursor: Annotated[bool, typer.Option("--cursor", help="Prints the last cursor to standard error.")] = False,
) -> None:
    """Prints lines of results and errors, also while the batch runs."""
    with connected(address) as client:
        wanted = "" if kind is Kind.ALL else kind.value
        for line in client.batch_results(batch_id, kind=wanted, finished_order=finished, cursor=after):
            out.out(line.line, highlight=False)
            after = line.cursor
        if show_cursor:
            err.print(after, markup=False)


@batch.command()
def cancel(batch_id: BatchId, address: Address = DEFAULT_ADDRESS) -> None:
    """Has a batch end; what was produced is kept and billed."""
    with connected(address) as client:
        out.print(_state(client.cancel_batch(batch_id)))


@batch.command()
def pause(batch_id: BatchId, address: Address = DEFAULT_ADDRESS) -> None:
    """Has no more items of a batch begin."""
    with connected(address) as client:
        out.print(_state(client.pause_batch(batch_id)))


@batch.command()
def resume(batch_id: BatchId, address: Address = DEFAULT_ADDRESS) -> None:
    """Has a paused batch go on."""
    with connected(address) as client:
        out.print(_state(client.resume_batch(batch_id)))


@batch.command()
def retry(
    batch_id: BatchId, address: Address = DEFAULT_ADDRESS, hours: Hours = 24, key: Key = "", budget: Budget = None
) -> None:
    """Runs what has no result again, in a new batch, and prints its id."""
    with connected(address) as client:
        made = client.retry_batch(
            batch_id, completion_seconds=hours * 3600, idempotency_key=key, max_cost_nanos=nanos(budget)
        )
        out.print(made.id)


@batch.command()
def delete(batch_id: BatchId, address: Address = DEFAULT_ADDRESS) -> None:
    """Deletes a batch that has ended, with its results."""
    with connected(address) as client:
        client.delete_batch(batch_id)
        out.print(f"{batch_id} deleted")


@batch.command("list")
def list_batches(
    address: Address = DEFAULT_ADDRESS,
    state: Annotated[list[str] | None, typer.Option(help="Those in this state; may be repeated.")] = None,
    most: Annotated[int, typer.Option(min=1, max=100, help="Most batches to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Lists batches, newest first."""
    known = [name.removeprefix("BATCH_STATE_").lower() for name, _ in batch_pb2.BatchState.items()]
    unknown = [name for name in state or () if name not in known]
    if unknown:
        fail(f"{unknown[0]!r} is no state of a batch")
    with connected(address) as client:
        found = client.list_batches(most, "", state or ()).batches
    if as_json:
        print_json(list(found))
        return
    table = Table(Column("id", no_wrap=True, min_width=30), "state", "completed", "failed", "of", "made", box=None)
    for each in found:
        counts = [f"{number:,}" for number in (each.counts.completed, each.counts.failed, each.counts.total)]
        table.add_row(each.id, _state(each), *counts, day(each.create_time))
    out.print(table)


def _state(found: batch_pb2.Batch) -> str:
    return batch_pb2.BatchState.Name(found.state).removeprefix("BATCH_STATE_").lower()


def _lines(file: str) -> Lines:
    if file == "-":
        return iter(lambda: sys.stdin.buffer.read(1 << 18), b"")
    path = Path(file)
    if not path.is_file():
        fail(f"there is no file {file}")
    return path


def _notes(notes: list[str]) -> dict[str, str]:
    pairs = [note.partition("=") for note in notes]
    wrong = [note for note, (_, sign, _value) in zip(notes, pairs, strict=True) if not sign]
    if wrong:
        fail(f"{wrong[0]!r} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _estimated(said: batch_pb2.BatchEstimate) -> str:
    tokens = f"{said.num_prompt_tokens:,} tokens of prompts and at most {said.num_completion_tokens:,} of output"
    return f"{said.num_items:,} items, about {tokens}, at most {money(said.cost_nanos)} {said.currency}"
