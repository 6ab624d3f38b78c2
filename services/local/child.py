"""One child process: started with its settings on standard input, read line by line, gone when its parent is."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import paceline
from services.local.system import Process

GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener"
"""gRPC polls for messages in the thread that wants them, if it is told so before it is imported. By itself it passes
each on between threads of an event engine, which takes twice as long (docs/decisions/messages.md)."""
_PACKAGE = Path(paceline.__file__).resolve().parent
_READ_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 20
"""What is longer is passed on in pieces."""
_KEPT_LINES = 200
_RAISED = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Exit): (.+)$")


class Child:
    """A running process of a system.

    Its end of a pipe is closed when the parent ends, however it ends; then the child stops by itself.
    """

    def __init__(self, process: asyncio.subprocess.Process, pipe: int) -> None:
        """`pipe` is the end that the parent keeps."""
        self._process = process
        self._pipe = pipe
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)

    @classmethod
    async def spawn(cls, process: Process) -> "Child":
        """Starts a process and tells it its settings."""
        environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS, **os.environ, "PYTHONUNBUFFERED": "1"}
        paths = [str(_PACKAGE.parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        theirs, ours = os.pipe()
        try:
            started = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "paceline", "serve", f"--parent-pipe={theirs}"),
                *(process.kind, "--settings", "-"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        child = cls(started, ours)
        if started.stdin is not None:
            with contextlib.suppress(ConnectionError):  # It has ended already: its last words say why.
                started.stdin.write(process.settings.to_json().encode())
                await started.stdin.drain()
            started.stdin.close()
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code; negative where a signal ended it, None while it runs."""
        return self._process.returncode

    async def read(self, on_line: Callable[[str], None]) -> int:
        """Passes on its lines until it ends, and returns its exit code."""
        async for line in self._lines():
            if line:
                self._last.append(line)
            on_line(line)
        code = await self._process.wait()
        os.close(self._pipe)
        return code

    def last_words(self) -> str:
        """Why it ended, as far as its output tells: what the exception that ended it says, or its last line."""
        raised = [found[1] for line in self._last if (found := _RAISED.match(line))]
        if raised:
            return raised[-1]
        return self._last[-1] if self._last else "it said nothing"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def wait(self) -> int:
        """Returns its exit code once it has ended."""
        return await self._process.wait()

    async def _lines(self) -> AsyncIterator[str]:
        if self._process.stdout is None:
            return
        rest = b""
        while data := await self._process.stdout.read(_READ_BYTES):
            *whole, rest = (rest + data).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                whole, rest = [*whole, rest], b""
            for line in whole:
                yield line.decode(errors="replace").rstrip()
        if rest:
            yield rest.decode(errors="replace").rstrip()
