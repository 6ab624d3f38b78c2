"""How long others wait beside one request: each of those that are large, alone."""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attacks.attack import Attack
from attacks.fire import Attacker
from attacks.siege import Siege
from paceline.v1 import model_pb2, model_pb2_grpc

_PAUSE_SECONDS = 0.005
_PATIENCE_SECONDS = 60.0
_TIMES = 3


class Wait(NamedTuple):
    """The longest that a question waited while a request was served, as the median of some times that it was sent."""

    seconds: float
    question: str
    attack: Attack
    outcome: str


async def longest_waits(siege: Siege, attacks: list[Attack]) -> list[Wait]:
    """The longest wait beside each of some attacks, longest first. Nobody else asks anything meanwhile.

    All are sent some times, in turns: what the machine does by itself falls on another each time.
    """
    attacker = Attacker(siege.addresses)
    found: list[list[Wait]] = [[] for _ in attacks]
    with _Asking.of(siege.addresses) as asking:
        for attack, waits in _TIMES * list(zip(attacks, found, strict=True)):
            metadata = siege.identities.metadata(attack.process, attack.identity)
            asking.longest()
            outcome = await attacker.send(attack, metadata)
            await asyncio.sleep(4 * _PAUSE_SECONDS)
            waits.append(Wait(*asking.longest(), attack, outcome))
    await attacker.close()
    medians = [sorted(waits, key=lambda wait: wait.seconds)[_TIMES // 2] for waits in found]
    return sorted(medians, key=lambda wait: -wait.seconds)


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
        while not self._over.wait(_PAUSE_SECONDS):
            self._since[name] = started = time.monotonic()
            with suppress(grpc.RpcError):  # How long it waited for none says enough.
                question()  # type: ignore[operator]
            self._longest = max(self._longest, (time.monotonic() - started, name))
            del self._since[name]
