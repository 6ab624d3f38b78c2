"""Objects as files in a folder, which belongs to one process.

A file is written aside on the same file system, brought to the disk, and then given its name, so that a crash leaves it
whole or not there. The lock is the kernel's and goes with the process, however it ends.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from paceline.errors import UnavailableError
from services.adapter_store.objects import CHUNK_BYTES, Listed, Opened, Tagged

_LOCK = "lock"
_INCOMING = "incoming"
_RETRY_AFTER_SECONDS = 5.0
T = TypeVar("T")


class FolderInUseError(RuntimeError):
    """Another process has the folder."""


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Has a folder for this process alone; yields an empty folder inside it for what is being written.

    Raises FolderInUseError when another process has it, OSError when it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(f"{folder} is in use by another adapter store") from error
        incoming = folder / _INCOMING
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        yield incoming
        shutil.rmtree(incoming, ignore_errors=True)


class FolderObjects:
    """See Objects. Tags are digests of contents."""

    def __init__(self, folder: Path, incoming: Path) -> None:
        """`incoming` is a folder on the same file system."""
        self._folder = folder
        self._incoming = incoming
        self._changing = threading.Lock()

    async def put(self, name: str, source: Path | bytes) -> None:
        """See Objects."""
        await on_disk(self._put, name, source)

    async def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        """See Objects."""
        return await on_disk(self._swap, name, data, tag)

    async def get(self, name: str) -> Tagged | None:
        """See Objects."""
        return await on_disk(self._read, name)

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Opened | None]:
        """See Objects."""
        try:
            file: BinaryIO = await asyncio.to_thread((self._folder / name).open, "rb")
        except FileNotFoundError:
            yield None
            return
        with file:
            yield Opened(os.fstat(file.fileno()).st_size, _chunks(file))

    async def stat(self, name: str) -> Listed | None:
        """See Objects."""
        return await on_disk(_stat, self._folder, self._folder / name)

    async def delete(self, name: str) -> None:
        """See Objects."""
        await on_disk(self._delete, self._folder / name)

    async def list(self, prefix: str) -> list[Listed]:
        """See Objects."""
        return await on_disk(_walk, self._folder, self._folder / prefix)

    def _put(self, name: str, source: Path | bytes) -> None:
        with self._aside(source) as written, self._changing:
            self._place(written, self._folder / name)

    def _swap(self, name: str, data: bytes, tag: str | None) -> bool:
        with self._aside(data) as written, self._changing:
            current = self._read(name)
            if (current.tag if current else None) != tag:
                return False
            self._place(written, self._folder / name)
            return True

    def _read(self, name: str) -> Tagged | None:
        try:
            data = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        return Tagged(data, hashlib.sha256(data).hexdigest())

    @contextmanager
    def _aside(self, source: Path | bytes) -> Iterator[Path]:
        """A second name, on the way, for a file that is on the disk with all of its bytes."""
        written = self._incoming / uuid.uuid4().hex
        try:
            if isinstance(source, Path):
                os.link(source, written)
            else:
                written.write_bytes(source)
            with written.open("rb") as file:
                os.fsync(file.fileno())
            os.utime(written)
            yield written
        finally:
            written.unlink(missing_ok=True)

    def _place(self, written: Path, path: Path) -> None:
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        written.replace(path)
        for folder in (path.parent, *(made.parent for made in missing)):
            _sync_folder(folder)

    def _delete(self, path: Path) -> None:
        """Deletes a file, and the folders that are empty then."""
        with self._changing:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                for folder in path.parents:
                    if folder == self._folder:
                        break
                    folder.rmdir()


def _stat(root: Path, path: Path) -> Listed | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Listed(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _walk(root: Path, folder: Path) -> list[Listed]:
    paths = [Path(parent, file) for parent, _, files in os.walk(folder) for file in files]
    return [found for path in sorted(paths) if (found := _stat(root, path)) is not None]


async def on_disk(work: Callable[..., T], *arguments: Any) -> T:
    """Runs work in a thread. What the disk refuses (it is full, say) is for later."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnavailableError(f"the disk refused: {error.strerror}", _RETRY_AFTER_SECONDS) from error


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await on_disk(file.read, CHUNK_BYTES):
        yield chunk


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
