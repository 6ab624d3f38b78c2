"""A whole system of real processes under attack, others who use it meanwhile, and what it has come to afterwards."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from attacks.attack import Attack
from attacks.bystanders import Bystanders
from attacks.condition import Condition, conditions, left_open, settled
from attacks.fire import Attacker, Outcome, is_fault
from attacks.generator import Generator
from attacks.identities import TENANT_HEADER, Identities
from attacks.ordinary import MODEL
from attacks.targets import Target, all_services, targets_of
from services.local.launcher import Launcher, Listener, running
from services.local.pair import Pair
from services.local.system import SystemSettings
from support.tiny import save_noisy, save_tiny, save_tokenizer

AT_ONCE = 24
"""Attacks at once."""
STALL_SECONDS = 3.0
"""Whoever uploads may pause as long."""
_CACHE_BYTES = 32 << 20
_KV_BYTES = 16 << 20
_NUM_SLOWEST = 10
_LEVELS = ("DEBUG ", "INFO ", "WARNING ", "ERROR ", "CRITICAL ")
_TRACEBACK = "Traceback (most recent call last):"


class _Log(Listener):
    """Keeps what processes write in despair."""

    def __init__(self) -> None:
        self.tracebacks: list[str] = []
        self._writing: set[str] = set()

    def on_line(self, name: str, line: str) -> None:
        if _TRACEBACK in line:
            self.tracebacks.append(f"{name}: {line}")
            self._writing.add(name)
        elif line.startswith(_LEVELS):
            self._writing.discard(name)
        elif name in self._writing:
            self.tracebacks[-1] += f"\n    {line}"


@dataclass(slots=True)
class Findings:
    """What attacks did."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How calls ended: how many of each status."""
    faults: list[str] = field(default_factory=list)
    """Sentences about what must not be, each with the attack if there is one to blame."""
    before: dict[str, Condition] = field(default_factory=dict)
    after: dict[str, Condition] = field(default_factory=dict)
    num_answers: Counter[str] = field(default_factory=Counter)
    """What others asked meanwhile, and got."""
    slowest: list[tuple[float, str]] = field(default_factory=list)
    """The calls that took longest, in seconds, each with its attack."""

    def add(self, attack: Attack, outcome: Outcome, seconds: float) -> None:
        """An attack has ended."""
        self.outcomes[outcome.partition(":")[0]] += 1
        self.slowest = sorted([*self.slowest, (seconds, f"{outcome}: {attack}")], reverse=True)[:_NUM_SLOWEST]
        if is_fault(attack, outcome):
            self.faults.append(f"{outcome} after {seconds:.1f} s: {attack}\n  replay: {attack.line()}")


class Siege:
    """A running system, and all that can be attacked of it."""

    def __init__(self, launcher: Launcher, targets: list[Target], log: _Log) -> None:
        self.targets = targets
        self.launcher = launcher
        self.identities = Identities(launcher.system.signing_key)
        self._log = log

    @property
    def addresses(self) -> dict[str, str]:
        """Where processes listen, by name."""
        return {process.name: process.address for process in self.launcher.system.processes}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self.launcher.children.items()}

    def generator(self, seed: int, huge: float) -> Generator:
        """Makes attacks on this system."""
        names = {process: self.identities.names(process) for process in self.addresses}
        return Generator(self.targets, names, seed, huge)

    async def endure(self, attacks: Iterable[Attack], on_attack: Callable[[Attack, str], None]) -> Findings:
        """Has the system attacked, and finds out how it and others fared. `on_attack` is told how each one ended."""
        attacker = Attacker(self.addresses)

        async def one(attack: Attack, found: Findings) -> None:
            metadata = self.identities.metadata(attack.process, attack.identity)
            started = time.monotonic()
            outcome = await attacker.send(attack, metadata)
            found.add(attack, outcome, time.monotonic() - started)
            on_attack(attack, outcome)
            waiting.release()

        async def all_of_them(found: Findings) -> None:
            async with asyncio.TaskGroup() as group:
                for attack in attacks:
                    await waiting.acquire()
                    if self._ended():
                        break
                    group.create_task(one(attack, found))
            await attacker.close()

        waiting = asyncio.Semaphore(AT_ONCE)
        return await self.beside(all_of_them)

    async def beside(self, attack: Callable[[Findings], Awaitable[None]]) -> Findings:
        """Runs an attack while others use the system, and finds out how it and they fared."""
        found, bystanders = Findings(), Bystanders(self.addresses)
        self._log.tracebacks.clear()
        await bystanders.start()
        found.before = conditions(self.pids)
        await attack(found)
        await self._judge(found, bystanders)
        return found

    async def _judge(self, found: Findings, bystanders: Bystanders) -> None:
        """What must hold when all is over."""
        if ended := self._ended():
            await bystanders.stop()
            found.faults.append(ended)
        else:
            try:
                await bystanders.check()
            except (grpc.RpcError, AssertionError) as error:
                found.faults.append(f"afterwards: {error}")
            await bystanders.stop()
            found.after = await settled(self.pids, found.before)
            for name, count in left_open(found.before, found.after).items():
                found.faults.append(f"{name} has {count} more files open than before")
        found.num_answers = bystanders.num_answers
        found.faults.extend(f"others: {failure}" for failure in bystanders.failures)
        found.faults.extend(self._log.tracebacks)

    def _ended(self) -> str | None:
        """A sentence about processes that have ended, if any have."""
        ended = [
            f"the {name} has ended (exit code {child.returncode}): {child.last_words()}"
            for name, child in self.launcher.children.items()
            if child.returncode is not None or psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        ]
        return "; ".join(ended) or None


@asynccontextmanager
async def besieged(folder: Path, model: Path | None = None) -> AsyncIterator[Siege]:
    """A system with a process of every kind, whose callers a proxy in front would name.

    Its models are tiny unless one is given, which is its own draft then.
    """
    target, draft = model or folder / MODEL, model or folder / "draft"
    if model is None:
        save_tiny(target, "llama", seed=0)
        save_tokenizer(target)
        save_noisy(draft, target)
    tiny = {"dtype": "float32", "kv_bytes": _KV_BYTES} if model is None else {}
    pair = Pair(id=MODEL, model=str(target), draft=str(draft), threads=1, draft_threads=1, **tiny)
    settings = SystemSettings(
        (pair,),
        prefix_cache=True,
        cache_folder=str(folder / "blocks"),
        adapter_store=True,
        adapter_folder=str(folder / "adapters"),
        overrides={
            "gateway": {"tenant_header": TENANT_HEADER},
            "adapter-store": {"stall_seconds": STALL_SECONDS},
            "prefix-cache": {"memory_bytes": _CACHE_BYTES, "disk_bytes": _CACHE_BYTES, "quota_bytes": _CACHE_BYTES},
        },
    )
    log = _Log()
    async with running(settings, log) as launcher:
        targets: list[Target] = []
        for process in launcher.system.processes:
            targets += await targets_of(process.name, process.address)
        missed = all_services() - {target.method.partition("/")[0] for target in targets}
        assert not missed, f"no process serves {missed}"
        yield Siege(launcher, targets, log)
