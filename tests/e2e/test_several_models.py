"""Two pairs behind one gateway, as `paceline up --models FILE` starts them."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from paceline import Client, NotFoundError
from services.local.pair import read_models
from services.local.system import named_ports
from support.redis_server import free_ports

OPTIONS = {"max_tokens": 20, "seed": 4, "ignore_eos": True}


@asynccontextmanager
async def up(models: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`paceline up`, once it says that it is ready or has ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline", "up", f"--models={models}", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if b"Ctrl-C stops everything" in line:
                break
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def tokens(client: Client, model: str) -> list[int]:
    events = client.generate("def f(", model=model, **OPTIONS)
    return [token_id async for event in events for token_id in event.delta.token_ids]


@pytest.mark.timeout(300)
async def test_two_pairs_are_served_by_one_gateway(
    target_folder: str, draft_folder: str, random_folder: str, tmp_path: Path
) -> None:
    other = shutil.copytree(random_folder, tmp_path / "other")
    shutil.copy(Path(target_folder) / "tokenizer.json", other)
    common = 'dtype = "float32"\nthreads = 1\ndraft_threads = 1\nkv_bytes = 16777216\n'
    written = tmp_path / "models.toml"
    written.write_text(
        f'[[models]]\nid = "first"\nmodel = "{target_folder}"\ndraft = "{draft_folder}"\n{common}'
        f'[[models]]\nid = "second"\nmodel = "other"\n{common}'
    )
    gateway, cache, store, verifier, draft = free_ports(5)
    while {verifier + 10, draft + 10} & {gateway, cache, store, verifier, draft}:
        gateway, cache, store, verifier, draft = free_ports(5)
    assert named_ports(read_models(written), verifier, draft)["verifier second"] == verifier + 10
    options = (
        f"--gateway-port={gateway}", f"--prefix-cache-port={cache}", f"--adapter-store-port={store}",
        f"--verifier-port={verifier}", f"--draft-port={draft}", f"--adapter-folder={tmp_path / 'adapters'}",
    )  # fmt: skip
    async with up(written, *options) as process, Client(f"127.0.0.1:{gateway}") as client:
        assert process.returncode is None
        found = {model.target.id: model for model in await client.list_models()}
        assert set(found) == {"first", "second"}
        assert found["first"].draft.id
        assert not found["second"].draft.id
        first, second = await asyncio.gather(tokens(client, "first"), tokens(client, "second"))
        assert len(first) == len(second) == 20
        assert first != second
        assert await tokens(client, "first") == first
        with pytest.raises(NotFoundError, match=r"first.*second"):
            await tokens(client, "third")
        process.terminate()
        assert await process.wait() == 0


async def test_a_wrong_file_is_told_in_one_line(tmp_path: Path) -> None:
    written = tmp_path / "models.toml"
    written.write_text('[[models]]\nmodel = "a"\ndtipe = "float32"\n')
    command = (sys.executable, "-m", "paceline", "up", f"--models={written}")
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    said = (await process.communicate())[1].decode()
    assert process.returncode == 1
    assert said == f"{written}: model 1: there is no key 'dtipe'; did you mean 'dtype'?\n"
