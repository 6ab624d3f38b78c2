"""Processes that tests kill and start again on the same port."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.redis_server import free_ports

_ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A Python process that listens on a port of its own."""

    def __init__(self, arguments: Sequence[str], settings: dict[str, Any] | None = None) -> None:
        """`settings` go to its standard input, as JSON with the port; without any the port is the last argument."""
        self.port = free_ports(1)[0]
        self._arguments = [*arguments] if settings is not None else [*arguments, str(self.port)]
        self._settings = {} if settings is None else {**settings, "server": {"port": self.port, "grace_seconds": 0.1}}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process, which runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        paths = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *self._arguments),
            cwd=_ROOT, env={**os.environ, "PYTHONPATH": paths},
            stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._settings).encode())
        await self._process.stdin.drain()
        self._process.stdin.close()

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


def two_gateways(tokenizer: str, database_url: str, **settings: Any) -> dict[str, list[Process]]:
    """Two gateways of one database, and scripted services behind them: two verifiers and a draft."""
    verifiers = [Process(("support.fake_process", "verifier")) for _ in range(2)]
    draft = Process(("support.fake_process", "draft"))
    addresses = [verifier.address for verifier in verifiers]
    settings |= {
        "models": [{"id": "fake", "tokenizer": tokenizer, "verifiers": addresses, "drafts": [draft.address]}],
        "telemetry": {"log_level": "WARNING"},
        "database": database_url,
    }
    gateways = [Process(("paceline", "serve", "gateway", "--settings", "-"), settings) for _ in range(2)]
    return {"gateway": gateways, "verifier": verifiers, "draft": [draft]}
