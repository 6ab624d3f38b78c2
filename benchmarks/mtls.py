"""What encrypting every connection costs: the same streams through a system in plaintext, and through one with mutual
TLS, in turns."""

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.page import machine, table, write_page
from benchmarks.speculation import held_out_prompts
from benchmarks.systems import Measured, median, num_different, quartiles_of_pairs, through_gateway
from paceline import Client
from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder
from services.local.certificates import make_certificates
from services.local.launcher import Launcher, running
from services.local.pair import Pair
from services.local.system import SystemSettings

NUM_STREAMS = 16
FLOOR = 0.95
_NUM_TOKENS = 48
_REPEATS = 32
_CASES = {"with a draft": True, "without": False}


class Cost(NamedTuple):
    """Tokens a second encrypted, and in plaintext."""

    case: str
    encrypted: list[Measured]
    plaintext: list[Measured]
    processor_seconds: tuple[list[float], list[float]]
    """Of all processes of the system and of its client: encrypted, and in plaintext."""

    @property
    def ratio(self) -> float:
        """Encrypted by plaintext."""
        return self.quartiles[1]

    @property
    def quartiles(self) -> list[float]:
        """Of the ratios of pairs of runs."""
        return quartiles_of_pairs(self.encrypted, self.plaintext)

    @property
    def processor_ratio(self) -> float:
        """How much more the processors have to do: the median of the same pairs."""
        return statistics.median(a / b for a, b in zip(*self.processor_seconds, strict=True))

    @property
    def num_different(self) -> int:
        """Streams whose tokens were others."""
        return num_different(self.encrypted, self.plaintext)

    @property
    def holds(self) -> bool:
        """Whether it costs little, and no token."""
        return self.ratio >= FLOOR and not self.num_different


def run(target: str, draft: str) -> list[Cost]:
    """Measures everything, in some two minutes on two cores."""
    return asyncio.run(_measure(target, draft))


def write_mtls(costs: Sequence[Cost], folder: Path) -> Path:
    """Writes mtls.md into a folder and returns its path."""
    lines = [
        "# What encrypting costs",
        "",
        f"Written by `make bench`: {machine()}. {NUM_STREAMS} streams of {_NUM_TOKENS} tokens at once, greedy, of the "
        "shipped pair, through two systems of five processes each, in turns: one in plaintext, one in which every "
        "connection is encrypted and both ends show certificates, the client's to the gateway too. Medians of "
        "the ratios of pairs of runs on the same prompts, and between what the middle half of them lies. A step of so "
        "small a target takes little, so there are many messages a second to encrypt. Processor time is that of all "
        "processes, the client included. With a draft two systems differ by what each comes to propose, too.",
        "",
        *table(
            (
                "drafts",
                "mTLS / plaintext",
                "floor",
                "middle half of the pairs",
                "tokens/s",
                "processor time",
                "pairs",
                "streams that differed",
            ),
            [
                (
                    cost.case,
                    f"**{cost.ratio:.3f}**" + ("" if cost.ratio >= FLOOR else " (missed)"),
                    f"{FLOOR:g}",
                    f"{cost.quartiles[0]:.2f} to {cost.quartiles[2]:.2f}",
                    f"{median(cost.encrypted):.0f} / {median(cost.plaintext):.0f}",
                    f"{cost.processor_ratio:.3f}",
                    len(cost.plaintext),
                    cost.num_different,
                )
                for cost in costs
            ],
        ),
    ]
    return write_page(folder, "mtls", lines)


async def _measure(target: str, draft: str) -> list[Cost]:
    pair = Pair(model=target, draft=draft, dtype="bfloat16")
    # Two systems that decided otherwise about the same load would differ by that.
    always: dict[str, Any] = {"verifier": {"speculation": "always", "verdict_file": ""}}
    plain = SystemSettings((pair,), prefix_cache=True, adapter_store=True, log_level="WARNING", overrides=always)
    costs = {case: Cost(case, [], [], ([], [])) for case in _CASES}
    # A prompt that comes again is known to both systems.
    prompts = cycle(held_out_prompts(target, 8 * NUM_STREAMS))
    async with AsyncExitStack() as resources:
        folder = CertificateFolder(Path(resources.enter_context(tempfile.TemporaryDirectory())) / "certificates")
        make_certificates(folder.path, (), days=1)
        edge = {"gateway": {"server": {"tls": folder.server(Identity.GATEWAY, with_callers=True)}}}
        encrypted = replace(plain, certificates=folder, overrides=always | edge)
        systems = []
        for settings in (encrypted, plain):
            launcher = await resources.enter_async_context(running(settings))
            client = await resources.enter_async_context(Client(launcher.address(), tls=launcher.client_tls))
            systems.append((launcher, client))
        for repeat in range(-1, _REPEATS):
            for case, speculation in _CASES.items():
                chosen = [next(prompts) for _ in range(NUM_STREAMS)]
                cost = costs[case]
                ways = list(zip((cost.encrypted, cost.plaintext), cost.processor_seconds, systems, strict=True))
                for runs, spent, (launcher, client) in ways if repeat % 2 else reversed(ways):
                    before = _processor_seconds(launcher)
                    measured = await through_gateway(client, chosen, _NUM_TOKENS, speculation=speculation)
                    if repeat >= 0:  # The one before is to warm up.
                        runs.append(measured)
                        spent.append(_processor_seconds(launcher) - before)
    return list(costs.values())


def _processor_seconds(launcher: Launcher) -> float:
    """What the processes of a system and this one, its client, have used so far."""
    processes = [psutil.Process(), *(psutil.Process(child.pid) for child in launcher.children.values())]
    return sum(process.cpu_times().user + process.cpu_times().system for process in processes)
