"""Folders of the cache that are made once: whole or not at all, by one process while others wait for it."""

import errno
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from services.common.checkpoint import CheckpointError, first_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def make_once(folder: Path, write: Callable[[Path], None], num_bytes: int, what: str, doing: str) -> None:
    """Has a folder made by `write`, which is given one that does not exist yet, unless it is there.

    It takes so many bytes. `what` is made of what, and `doing` is what is done with that, such as "converted". Raises
    CheckpointError in a sentence that begins with both.
    """
    with _explained(what, doing, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if folder.is_dir():
                return
            unfinished = f".{folder.name}-"
            for left in [path for path in folder.parent.iterdir() if path.name.startswith(unfinished)]:
                shutil.rmtree(left, ignore_errors=True)  # It is of a process that was killed.
            free = shutil.disk_usage(folder.parent).free
            if free < num_bytes:
                how_much = f"{num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
                raise _no_room(what, doing, folder.parent, how_much)
            with TemporaryDirectory(prefix=unfinished, dir=folder.parent) as made:
                write(Path(made) / "model")
                (Path(made) / "model").rename(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder; the others wait for it."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _no_room(what: str, doing: str, folder: Path, how_much: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is {doing} into {folder}, which takes {how_much}: make room, or set XDG_CACHE_HOME to another folder"
    )


@contextmanager
def _explained(what: str, doing: str, folder: Path) -> Iterator[None]:
    """Has whatever goes wrong said in a sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise _no_room(what, doing, folder, "more than is free") from error
        raise CheckpointError(f"{what} cannot be {doing}: {error}") from error
    except Exception as error:  # Files of somebody's, read by code of others.
        raise CheckpointError(f"{what} cannot be {doing}: {first_line(error)}") from error


def print_made(make: Callable[[], Path]) -> None:
    """A process that makes a folder: prints it, or why there is none, and then ends with 1.

    SIGINT and SIGTERM end it, and nothing is left then.
    """
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        print(make())  # noqa: T201
    except CheckpointError as error:
        print(error)  # noqa: T201
        sys.exit(1)


def _stop(*_: object) -> None:
    """Ends this process, once what it has not finished is removed."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(1)
