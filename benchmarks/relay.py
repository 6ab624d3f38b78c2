"""A TCP relay that delays what passes through it, each way: a network for two processes of one machine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class DelayingRelay:
    """Takes connections on a free port of loopback and passes them on to another, every byte so much later."""

    def __init__(self, target_port: int) -> None:
        self.delay_seconds = 0.0
        self.port = 0
        self._target_port = target_port

    @asynccontextmanager
    async def running(self) -> AsyncIterator["DelayingRelay"]:
        """Runs while the block does."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.create_task(self._send(queue, writer))
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(1 << 16):
                queue.put_nowait((loop.time() + self.delay_seconds, data))
        except OSError:
            pass
        queue.put_nowait((loop.time() + self.delay_seconds, b""))
        await sender

    @staticmethod
    async def _send(queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    break
                writer.write(data)
        except OSError:
            pass
        writer.close()
