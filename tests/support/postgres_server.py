"""A real PostgreSQL server on loopback that can be stopped and started again."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import IO

import asyncpg

from support.redis_server import free_ports

_OPTIONS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
_START_SECONDS = 60.0
_USER = "postgres"


class PostgresServer:
    """A server of its own, in its own folder, for the user `paceline`."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        # Not in the folder of all tests: another run of tests closes that to all but its own user.
        folder = Path(tempfile.mkdtemp(prefix="paceline-postgres-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._data = folder / "data"
        self._as_user: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            # PostgreSQL does not run as root. Python itself would fork to change the user, which gRPC's threads do not
            # survive.
            self._as_user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
            os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
        self._run("initdb", "-D", str(self._data), "-U", "paceline", "--no-sync", "--auth=trust", "-E", "UTF8")

    def url(self, name: str = "postgres") -> str:
        """Address of one of its databases."""
        return f"postgresql://paceline@127.0.0.1:{self.port}/{name}"

    async def start(self) -> None:
        """Starts it, or starts it again; returns once it answers."""
        options = [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
        own = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._data}"]
        command = [*self._as_user, _binary("postgres"), "-D", str(self._data), *own, *options]
        with (self._data.parent / "log").open("ab") as log:
            self._process = self._spawn(command, log)
        async with asyncio.timeout(_START_SECONDS):
            while True:
                assert self._process.poll() is None, (self._data.parent / "log").read_text()
                try:
                    await (await asyncpg.connect(self.url())).close()
                    return
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Ends it at once, and every connection with it. Does nothing when it has ended."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    async def execute(self, statement: str) -> None:
        """Runs a statement that is about whole databases."""
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _spawn(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd="/")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([*self._as_user, _binary(program), *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")


def _binary(name: str) -> str:
    """Debian keeps the server's programs off the path."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(kept[-1]) if kept else shutil.which(name)
    assert found is not None, f"no {name}: make setup-dev installs PostgreSQL"
    return found
