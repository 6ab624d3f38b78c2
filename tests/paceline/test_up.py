"""What is wrong with what `paceline up` is told is said in words, in a line, and before a process is started."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from support.redis_server import free_ports

NAMES = ("gateway", "draft", "verifier", "prefix-cache", "adapter-store")


async def up(folder: Path, *arguments: str, **environment: str) -> tuple[int | None, list[str]]:
    """Exit code and lines of `paceline up`, whose ports are free and whose data lie in a folder.

    It serves the small pair where no model is named.
    """
    if not any(argument.startswith("--model") for argument in arguments):
        arguments = ("--model=python-pair", *arguments)
    ports = [f"--{name}-port={port}" for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline", "up", *ports, *arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "300", "XDG_DATA_HOME": str(folder), "CUDA_VISIBLE_DEVICES": "-1", **environment},
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    return process.returncode, said.splitlines()


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("--model=/nowhere/at/all",), {}, "there is no folder /nowhere/at/all"),
        (("--draft-model=/nowhere/at/all",), {}, "there is no folder /nowhere/at/all"),
        (("--models=/nowhere.toml",), {}, "/nowhere.toml cannot be read: No such file or directory"),
        (("--device=cuda",), {}, "the verifier is to run on a GPU, and "),
        (("--database=mysql://somewhere",), {}, "settings of the gateway: database: is neither sqlite:///FILE nor "),
        (("--cache-folder=/dev/null/blocks",), {}, "the prefix-cache cannot keep anything in /dev/null/blocks"),
        (("--host=192.0.2.1",), {}, "192.0.2.1 is no address of this machine"),
        (
            (),
            {"PACELINE_GATEWAY_MODLES": "1"},
            "settings of the gateway: environment variable PACELINE_GATEWAY_MODLES ",
        ),
        ((), {"PACELINE_DRAFT_ENGINE__KV_BYTES": "all"}, "settings of the draft: engine.kv_bytes: Input should be a "),
    ],
)
async def test_what_cannot_be_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    code, lines = await up(tmp_path, *arguments, **environment)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(says)


@pytest.mark.parametrize("wrong", ["--gateway-port=99999", "--threads-verifier=0", "--dtype=bf16", "--modle=m"])
async def test_an_option_that_cannot_be_is_named(tmp_path: Path, wrong: str) -> None:
    code, lines = await up(tmp_path, wrong)
    assert code == 2
    assert any(wrong.partition("=")[0] in line for line in lines)
    assert not any("Traceback" in line for line in lines)
