"""Asks processes for their health, and a gateway for its models, over and over, and says how long answers take.

It is a process of its own, so that what attackers do beside it is not counted: `asked` starts it.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.v1 import model_pb2, model_pb2_grpc

PAUSE_SECONDS = 0.005
_PATIENCE_SECONDS = 60.0
Longest: TypeAlias = Callable[[], Awaitable[tuple[float, str]]]
"""Says the longest wait since it was asked last, in seconds, and for what."""


@asynccontextmanager
async def asked(addresses: Mapping[str, str]) -> AsyncIterator[Longest]:
    """Has the processes at these addresses, by their names, be asked until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "attacks.asking", json.dumps(dict(addresses))),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    reader, writer = process.stdout, process.stdin
    assert reader is not None
    assert writer is not None

    async def longest() -> tuple[float, str]:
        writer.write(b"\n")
        seconds, name = json.loads(await reader.readline())
        return seconds, name

    try:
        yield longest
    finally:
        writer.close()
        await process.wait()


class _Asking:
    """Asks for the health of processes, and a gateway for its models, each over and over on a thread of its own."""

    def __init__(self, channels: Mapping[str, grpc.Channel]) -> None:
        self._longest: tuple[float, str] = (0.0, "")
        self._since: dict[str, float] = {}
        self._over = threading.Event()
        questions = {f"Check of the {name}": health_pb2_grpc.HealthStub(channel) for name, channel in channels.items()}
        models = model_pb2_grpc.ModelServiceStub(channels["gateway"])
        asked = {
            name: (lambda stub=stub: stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_SECONDS))
            for name, stub in questions.items()
        }
        asked["ListModels"] = lambda: models.ListModels(model_pb2.ListModelsRequest(), timeout=_PATIENCE_SECONDS)
        self._threads = [threading.Thread(target=self._ask, args=each, daemon=True) for each in asked.items()]
        for thread in self._threads:
            thread.start()

    @classmethod
    @contextmanager
    def of(cls, addresses: Mapping[str, str]) -> Iterator["_Asking"]:
        """Asks the processes at these addresses until the block ends."""
        channels = {name: grpc.insecure_channel(address) for name, address in addresses.items()}
        asking = cls(channels)
        try:
            yield asking
        finally:
            asking._over.set()
            for thread in asking._threads:
                thread.join()
            for channel in channels.values():
                channel.close()

    def longest(self) -> tuple[float, str]:
        """The longest wait since this was asked last, those that go on included, and for what."""
        now = time.monotonic()
        waiting = [(now - since, name) for name, since in list(self._since.items())]
        found, self._longest = max([self._longest, *waiting]), (0.0, "")
        return found

    def _ask(self, name: str, question: object) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            self._since[name] = started = time.monotonic()
            with suppress(grpc.RpcError):  # How long it waited for none says enough.
                question()  # type: ignore[operator]
            self._longest = max(self._longest, (time.monotonic() - started, name))
            del self._since[name]


def main() -> None:
    """Answers each line that comes with the longest wait since the one before."""
    with _Asking.of(json.loads(sys.argv[1])) as asking:
        for _ in sys.stdin:
            print(json.dumps(asking.longest()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
