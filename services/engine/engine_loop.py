"""The engine's thread: commands in through an inbox, events out in one hand-over a step.

The thread owns the engine and every sequence. Nothing here is locked because nothing is shared: asyncio puts commands
(callables) into the inbox, the thread runs them between steps, and what a role emits is delivered on the asyncio side
in the order in which it was emitted.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from services.common.errors import UnavailableError
from services.engine.engine import Engine
from services.engine.model_runner import Result

_log = logging.getLogger(__name__)
_LOADING_RETRY_SECONDS = 2.0
_STUCK_SECONDS = 0.005

_Event = tuple[Callable[[object], None], object]


class Role(Protocol):
    """What a service does with the picks of its sequences. Runs on the engine's thread."""

    engine: Engine

    def prepare(self, now: float) -> None:
        """Decides, before every step, what is to be in it. `now` is the time of the monotonic clock, in seconds."""

    def advance(self, results: list[Result]) -> None:
        """Takes the results of a step and prepares the sequences for the next."""

    def fail(self, error: BaseException) -> None:
        """Tells every open stream that the engine is gone."""


class Outbox:
    """Collects events on the engine's thread and delivers them on the event loop, one call a flush."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: list[_Event] = []

    def put(self, deliver: Callable[[object], None], event: object) -> None:
        """Has `deliver(event)` called on the event loop."""
        self._events.append((deliver, event))

    def flush(self) -> None:
        """Hands over everything collected since the last flush."""
        if self._events:
            events, self._events = self._events, []
            self._loop.call_soon_threadsafe(_deliver, events)


R = TypeVar("R", bound=Role)


class EngineLoop(Generic[R]):
    """Runs a role's engine on a thread of its own."""

    def __init__(self, build: Callable[[Outbox], R], name: str) -> None:
        loop = asyncio.get_running_loop()
        self._build = build
        self._outbox = Outbox(loop)
        self._inbox: queue.SimpleQueue[Callable[[R], None] | None] = queue.SimpleQueue()
        self._loop = loop
        self._ready: asyncio.Future[R] = loop.create_future()
        self.stopped: asyncio.Future[None] = loop.create_future()
        """Done when the thread has ended; carries the error that ended it."""
        self.background: Callable[[Engine], bool] = lambda _: False
        """Run on the thread between steps, and again while nothing else is to do and it says that more is."""
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def ready(self) -> R:
        """The role, once its engine is built. Raises what building raised."""
        return await asyncio.shield(self._ready)

    @property
    def is_ready(self) -> bool:
        """Whether the engine has been built."""
        return self._ready.done() and self._ready.exception() is None

    @property
    def role(self) -> R:
        """The role. Raises UnavailableError while the engine is being built, or when it could not be."""
        if not self.is_ready:
            raise UnavailableError("the model is being loaded", retry_after_seconds=_LOADING_RETRY_SECONDS)
        return self._ready.result()

    def submit(self, command: Callable[[R], None]) -> None:
        """Has `command(role)` run on the engine's thread before its next step."""
        self._inbox.put(command)

    async def stop(self) -> None:
        """Ends the thread after the step that it is in. Returns when it has ended."""
        self._inbox.put(None)
        await asyncio.wait([self.stopped])

    def _main(self) -> None:
        try:
            role = self._build(self._outbox)
        except BaseException as error:
            self._loop.call_soon_threadsafe(_settle, self._ready, None, error)
            self._loop.call_soon_threadsafe(_settle, self.stopped, None, error)
            return
        self._loop.call_soon_threadsafe(_settle, self._ready, role, None)
        try:
            self._run(role)
        except Exception as error:
            _log.exception("the engine failed")
            role.fail(error)
            self._outbox.flush()
            self._loop.call_soon_threadsafe(_settle, self.stopped, None, error)
        else:
            self._loop.call_soon_threadsafe(_settle, self.stopped, None, None)

    def _run(self, role: R) -> None:
        engine = role.engine
        stuck = False
        while self._take_commands(role, stuck=stuck):
            num_steps = engine.num_steps
            results = engine.step()
            stuck = engine.num_steps == num_steps
            role.advance(results)
            self._outbox.flush()
            self.background(engine)

    def _take_commands(self, role: R, *, stuck: bool) -> bool:
        """Runs all commands there are; waits for one while nothing is runnable. False when told to stop.

        `stuck` says that what is runnable could not be run, for want of blocks that others still hold.
        """
        scheduler = role.engine.scheduler
        while True:
            if not self._drain(role):
                return False
            now = time.monotonic()
            role.prepare(now)
            wait = scheduler.seconds_until_runnable(now)
            if stuck and wait is not None:
                wait = max(wait, _STUCK_SECONDS)
            if wait == 0:
                return True
            if self.background(role.engine):
                continue
            try:
                command = self._inbox.get(timeout=wait)
            except queue.Empty:
                stuck = False
                continue
            if command is None:
                return False
            command(role)
            stuck = False

    def _drain(self, role: R) -> bool:
        """Runs the commands that are there, and hands over what they emitted. False when told to stop."""
        try:
            while (command := self._inbox.get_nowait()) is not None:
                command(role)
        except queue.Empty:
            self._outbox.flush()
            return True
        return False


def _deliver(events: list[_Event]) -> None:
    for deliver, event in events:
        deliver(event)


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # Seen: whoever awaits it gets it again.
