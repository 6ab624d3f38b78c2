"""Commands as they are typed: each a process of its own."""

import asyncio
import os
import sys

COMMAND = (sys.executable, "-m", "paceline")


class Output:
    """What a command that has ended said."""

    def __init__(self, code: int | None, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out.decode(), err.decode()


async def typed(*arguments: str, standard_input: bytes = b"", **environment: str) -> Output:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip
    out, err = await process.communicate(standard_input)
    return Output(process.returncode, out, err)
