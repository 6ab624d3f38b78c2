"""`paceline adapters`: a caller's LoRA adapters."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from paceline.cli.serve import SERVE, reach
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, AsJson, connected, err, fail, out, print_json
from paceline.upload import CONFIG_NAME, WEIGHTS_NAME, adapter_files

adapters = typer.Typer(no_args_is_help=True, help="Your LoRA adapters.")
_SHORT_DIGEST = 8


@adapters.command()
def upload(
    given: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help=f"Holds {CONFIG_NAME} and {WEIGHTS_NAME}, as PEFT saves them; or the name of an adapter that ships.",
        ),
    ],
    name: Annotated[str, typer.Option(help="What you will call it; default: as the folder.")] = "",
    address: Address = DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option(help="Model that it adapts; may be left out where one is served.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Moves the name when it is taken.")] = False,
    ignore_base_model: Annotated[
        bool, typer.Option("--ignore-base-model", help="Its configuration may name another base model.")
    ] = False,
    for_draft: Annotated[
        bool, typer.Option("--for-draft", help="It is for the draft, beside your adapter of that name.")
    ] = False,
) -> None:
    """Uploads an adapter, once all of it was found to be in order."""
    folder = _folder(given)
    name = name or folder.resolve().name
    try:
        num_bytes = sum(path.stat().st_size for path in adapter_files(folder))
    except OSError as error:
        fail(str(error))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with connected(address) as client:
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task(f"uploading {name}", total=num_bytes)
            adapter = client.upload_adapter(
                folder,
                name,
                model=model,
                replace=replace,
                ignore_base_model=ignore_base_model,
                for_draft=for_draft,
                on_progress=lambda sent: progress.update(task, completed=sent),
            )
        digest = adapter.draft_digest if for_draft else adapter.digest
        out.print(f"{adapter.name}: rank {adapter.rank}, {', '.join(adapter.target_modules)}, digest {digest}")


@adapters.command("list")
def list_adapters(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Lists your adapters."""
    with connected(address) as client:
        found = client.list_adapters()
    if as_json:
        print_json(found)
        return
    table = Table("name", "rank", "layers", "MB", "digest", "draft", box=None)
    for adapter in found:
        table.add_row(
            adapter.name,
            str(adapter.rank),
            " ".join(module.removesuffix("_proj") for module in adapter.target_modules),
            f"{adapter.num_bytes / 1e6:.1f}",
            adapter.digest[:_SHORT_DIGEST],
            adapter.draft_digest[:_SHORT_DIGEST] or "base",
        )
    out.print(table)


@adapters.command()
def delete(name: Annotated[str, typer.Argument(help="What you call it.")], address: Address = DEFAULT_ADDRESS) -> None:
    """Deletes an adapter. Streams that run with it go on."""
    with connected(address) as client:
        client.delete_adapter(name)
        out.print(f"{name} deleted")


def _folder(given: str) -> Path:
    """The folder of that name, or that of an adapter that ships."""
    folder = Path(given).expanduser()
    if folder.exists() or importlib.util.find_spec(SERVE.module) is None:
        return folder
    reach(SERVE)
    from services.local.pair import shipped_adapters

    return shipped_adapters().get(given, folder)
