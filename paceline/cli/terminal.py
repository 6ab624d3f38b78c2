"""What the commands of the command line share: consoles, common options, and how they fail."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn

import grpc
import typer
from rich.console import Console

from paceline.client import error_details

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)
DEFAULT_ADDRESS = "127.0.0.1:7100"
Address = Annotated[str, typer.Option(help="host:port of the gateway.", envvar="PACELINE_ADDRESS")]
_INTERRUPTED = 130


def run(command: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a command to its end; an error of the gateway's becomes a line and exit code 1."""
    try:
        asyncio.run(command())
    except grpc.RpcError as error:
        details = "; ".join(str(detail).strip().replace("\n", " ") for detail in error_details(error))
        fail(f"{error.code().name}: {error.details()}" + (f" ({details})" if details else ""))
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def fail(message: str) -> NoReturn:
    """Ends the process with a line and exit code 1."""
    err.print(message, style="red", markup=False)
    raise typer.Exit(1)
