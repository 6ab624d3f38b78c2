"""`paceline serve`: one process of a system; and the one place that finds the code of processes in an installation."""

import gc
import importlib.util
import os
import runpy
import signal
import sys
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from paceline.cli.terminal import fail

_PACKAGE = Path(__file__).resolve().parent.parent
_LAST_SECONDS = 15.0
_SPIN_COUNT = 2_000
"""Rounds, some 50 ns each, that a thread of a step spins for the others before it sleeps. It seldom waits as long,
unless something else runs on their cores: then it is the others that spinning would keep from their work.
"""


class Process(StrEnum):
    """What can be served."""

    GATEWAY = "gateway"
    VERIFIER = "verifier"
    DRAFT = "draft"
    PREFIX_CACHE = "prefix-cache"
    ADAPTER_STORE = "adapter-store"


class Extra(NamedTuple):
    """Dependencies that are installed on demand, by one of them."""

    name: str
    module: str


SERVE = Extra("serve", "pydantic_settings")
ENGINE = Extra("engine", "torch")


def serve(
    context: typer.Context,
    process: Annotated[Process, typer.Argument(help="Which one; `paceline serve gateway --help` says more of it.")],
    parent: Annotated[int | None, typer.Option("--parent-pipe", hidden=True)] = None,
) -> None:
    """Runs one process of a system until it is told to stop. What follows its name are its own settings."""
    reach(ENGINE if process in (Process.VERIFIER, Process.DRAFT) else SERVE)
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    if "OMP_WAIT_POLICY" not in os.environ:  # Both are read when the engine is imported, and the count counts for more.
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))
    sys.argv = [f"paceline serve {process}", *context.args]
    # Nothing of what is imported is garbage, and looking for it takes a quarter of the time. A server has it on again.
    gc.disable()
    module = process if process is Process.GATEWAY else f"services.{process.replace('-', '_')}"
    runpy.run_module(module, run_name="__main__")


def reach(extra: Extra) -> None:
    """Puts the folder of `gateway` and `services` on the path of this process: `_server` where this is a wheel, else
    that of the source tree. Ends the process with a sentence when the extra is not installed.
    """
    if importlib.util.find_spec(extra.module) is None:
        fail(f"this takes more than the client: pip install 'paceline[{extra.name}]'")
    installed = _PACKAGE / "_server"
    folder = str(installed if installed.is_dir() else _PACKAGE.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _end_with(pipe: int) -> None:
    """Has this process stop when whoever started it is gone, however it ended: then the pipe is closed."""
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_SECONDS)
    os._exit(1)
