"""Writing a namespace's blocks and deleting them take turns: what was being written does not reappear afterwards."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Turns:
    """Keeps nothing of namespaces that nobody writes to or clears."""

    def __init__(self) -> None:
        self._writing: Counter[str] = Counter()
        self._clearing: dict[str, asyncio.Event] = {}
        self._idle: dict[str, asyncio.Event] = {}

    def is_clearing(self, namespace: str) -> bool:
        """Whether nobody may begin to write now."""
        return namespace in self._clearing

    async def cleared(self, namespace: str) -> None:
        """Returns when one may write."""
        while (over := self._clearing.get(namespace)) is not None:
            await over.wait()

    @contextmanager
    def writing(self, namespace: str) -> Iterator[None]:
        """Holds up whoever wants to clear until the block ends. Nobody may be clearing when it begins."""
        self._writing[namespace] += 1
        try:
            yield
        finally:
            self._writing[namespace] -= 1
            if not self._writing[namespace]:
                del self._writing[namespace]
                if namespace in self._idle:
                    self._idle.pop(namespace).set()

    @asynccontextmanager
    async def clearing(self, namespace: str) -> AsyncIterator[None]:
        """Lets nobody begin to write until the block ends; it begins when those who write already are done."""
        await self.cleared(namespace)
        over = self._clearing[namespace] = asyncio.Event()
        try:
            if namespace in self._writing:
                idle = self._idle[namespace] = asyncio.Event()
                await idle.wait()
            yield
        finally:
            self._idle.pop(namespace, None)
            del self._clearing[namespace]
            over.set()
