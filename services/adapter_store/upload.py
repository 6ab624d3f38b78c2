"""An adapter on its way in: announced, received into a local file, and gone again unless it is kept."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from paceline.errors import FieldViolation, InvalidArgumentError
from paceline.v1 import adapter_pb2
from services.adapter_store.catalog import Files
from services.adapter_store.folder_objects import on_disk
from services.adapter_store.layout import check_label
from services.common.lora.config import CONFIG_NAME, MAX_CONFIG_BYTES, UNPICKLED, WEIGHTS_NAME, AdapterDigest

_MAX_FILES = 32
_HINTS = {"adapter_model.bin": f"pickles are never read; {UNPICKLED}"}


class Received(NamedTuple):
    """Both files of an upload."""

    files: Files
    digest: str
    num_bytes: int


def check_announcement(upload: adapter_pb2.AdapterUpload, max_bytes: int) -> None:
    """Raises InvalidArgumentError unless both files were announced, within the limits."""
    check_label("name", upload.name)
    if len(upload.files) > _MAX_FILES:  # A sentence about each of a million would take seconds.
        raise InvalidArgumentError("files", f"must be {CONFIG_NAME} and {WEIGHTS_NAME}, got {len(upload.files)} files")
    violations: list[FieldViolation] = []
    for index, file in enumerate(upload.files):
        if file.name not in (CONFIG_NAME, WEIGHTS_NAME):
            hint = _HINTS.get(file.name.rsplit("/", 1)[-1], f"only {CONFIG_NAME} and {WEIGHTS_NAME} are taken")
            violations.append(FieldViolation(f"files[{index}].name", f"{file.name[:100]!r}: {hint}"))
        elif file.num_bytes < 1:
            violations.append(FieldViolation(file.name, "is empty"))
        elif file.name == CONFIG_NAME and file.num_bytes > MAX_CONFIG_BYTES:
            problem = f"{file.num_bytes} bytes are more than the limit of {MAX_CONFIG_BYTES}"
            violations.append(FieldViolation(CONFIG_NAME, problem))
    names = [file.name for file in upload.files]
    if not violations and sorted(names) != [CONFIG_NAME, WEIGHTS_NAME]:
        violations.append(FieldViolation("files", f"must be {CONFIG_NAME} and {WEIGHTS_NAME}, got {names[:8]}"))
    total = sum(file.num_bytes for file in upload.files)
    if not violations and total > max_bytes:
        violations.append(FieldViolation("files", f"{total} bytes are more than the limit of {max_bytes}"))
    if violations:
        raise InvalidArgumentError(*violations[0], *violations[1:])


@asynccontextmanager
async def received(
    upload: adapter_pb2.AdapterUpload, pieces: AsyncIterator[bytes], folder: Path
) -> AsyncIterator[Received]:
    """Both files until the block ends. Raises InvalidArgumentError for more or fewer bytes than announced."""
    sizes = {file.name: file.num_bytes for file in upload.files}
    total = sum(sizes.values())
    with tempfile.TemporaryDirectory(dir=folder) as place:
        paths = {name: Path(place) / name for name in (CONFIG_NAME, WEIGHTS_NAME)}
        handles = {name: path.open("wb") for name, path in paths.items()}
        try:
            order, count, at = list(sizes), 0, 0
            left = sizes[order[0]]
            async for piece in pieces:
                count += len(piece)
                if count > total:
                    raise InvalidArgumentError("data", f"more than the {total} bytes that were announced")
                view = memoryview(piece)
                while view:
                    if not left:
                        at += 1
                        left = sizes[order[at]]
                    part, view = view[:left], view[left:]
                    await on_disk(handles[order[at]].write, part)
                    left -= len(part)
            if count < total:
                raise InvalidArgumentError("data", f"{count} bytes came, {total} were announced")
        finally:
            for handle in handles.values():
                handle.close()
        config = paths[CONFIG_NAME].read_bytes()
        digest = await asyncio.to_thread(_digest, config, paths[WEIGHTS_NAME])
        yield Received(Files(config, paths[WEIGHTS_NAME]), digest, total)


def _digest(config: bytes, weights: Path) -> str:
    digest = AdapterDigest()
    digest.begin(len(config))
    digest.update(config)
    digest.begin(weights.stat().st_size)
    with weights.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
