"""What an Envoy in front costs: the same streams through the edge that ships, and to the gateway itself, in turns."""

import asyncio
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from benchmarks.page import machine, table, write_page
from benchmarks.speculation import held_out_prompts
from benchmarks.systems import Measured, median, num_different, quartiles_of_pairs, through_gateway
from paceline import Client, Tls, UnavailableError
from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder
from services.local.certificates import make_certificates
from services.local.launcher import running
from services.local.pair import Pair
from services.local.ports import free_port
from services.local.system import SystemSettings

FLOOR = 0.95
_ENVOY = Path(sys.executable).parent / "envoy"
_FILES = Path(__file__).resolve().parent.parent / "deploy" / "envoy"
_REPEATS = 60
"""One pair of runs differs from the next by far more than what is looked for."""
_NUM_TOKENS = {1: 240, 16: 96}
"""Tokens of each stream, by the number of streams: no run is over before it can be told apart."""
_FIRST_SECONDS = 30.0


class Cost(NamedTuple):
    """Tokens a second through Envoy, and directly, of so many streams at once."""

    num_streams: int
    through: list[Measured]
    directly: list[Measured]
    processor_seconds: list[float]
    """Of Envoy, in each run through it."""

    @property
    def envoy_seconds_a_token(self) -> float:
        """Processor time that Envoy takes for one token of one stream."""
        num_tokens = len(self.through) * self.num_streams * _NUM_TOKENS[self.num_streams]
        return sum(self.processor_seconds) / num_tokens

    @property
    def ratio(self) -> float:
        """Through Envoy by directly."""
        return quartiles_of_pairs(self.through, self.directly)[1]

    @property
    def first_seconds(self) -> tuple[float, float]:
        """Median time to the first token: through Envoy, and directly."""
        through, directly = (
            statistics.median(seconds for run in runs for seconds in run.first_seconds)
            for runs in (self.through, self.directly)
        )
        return through, directly

    @property
    def num_different(self) -> int:
        """Streams whose tokens were others."""
        return num_different(self.through, self.directly)

    @property
    def holds(self) -> bool:
        """Whether it costs little, and no token."""
        return self.ratio >= FLOOR and not self.num_different


def run(target: str, draft: str) -> list[Cost]:
    """Measures everything, in some six minutes on two cores."""
    return asyncio.run(_measure(target, draft))


def write_envoy(costs: Sequence[Cost], folder: Path) -> Path:
    """Writes envoy.md into a folder and returns its path."""
    lines = [
        "# What an Envoy in front costs",
        "",
        f"Written by `make bench`: {machine()}. Streams, greedy, of the shipped pair, from one "
        "system of real processes: through an Envoy with `deploy/envoy/edge.yaml` (TLS from the client, mutual TLS to "
        "the gateway), and to the gateway directly with mutual TLS, in turns. Medians of the ratios of pairs of runs "
        "on the same prompts, which are computed before. Envoy (one worker), the client and the system share the "
        "machine's cores.",
        "",
        *table(
            (
                "streams",
                "tokens of each",
                "through / directly",
                "floor",
                "tokens/s",
                "first token, ms",
                "Envoy's processor time a token, µs",
                "pairs",
                "streams that differed",
            ),
            [
                (
                    cost.num_streams,
                    _NUM_TOKENS[cost.num_streams],
                    f"**{cost.ratio:.3f}**" + ("" if cost.ratio >= FLOOR else " (missed)"),
                    f"{FLOOR:g}",
                    f"{median(cost.through):.0f} / {median(cost.directly):.0f}",
                    " / ".join(f"{1000 * seconds:.0f}" for seconds in cost.first_seconds),
                    f"{1e6 * cost.envoy_seconds_a_token:.0f}",
                    len(cost.directly),
                    cost.num_different,
                )
                for cost in costs
            ],
        ),
    ]
    return write_page(folder, "envoy", lines)


async def _measure(target: str, draft: str) -> list[Cost]:
    pair = Pair(model=target, draft=draft, dtype="bfloat16")
    costs = {number: Cost(number, [], [], []) for number in _NUM_TOKENS}
    prompts = cycle(held_out_prompts(target, 8 * max(_NUM_TOKENS)))
    async with AsyncExitStack() as resources:
        folder = CertificateFolder(Path(resources.enter_context(tempfile.TemporaryDirectory())) / "certificates")
        make_certificates(folder.path, (), days=1)
        overrides: dict[str, Any] = {
            # What one run said must not be proposed to the next one of the same prompts.
            "verifier": {"speculation": "always", "verdict_file": "", "suffix_drafting": False},
            "gateway": {"server": {"tls": folder.server(Identity.GATEWAY, with_callers=True)}},
        }
        settings = SystemSettings((pair,), certificates=folder, log_level="WARNING", overrides=overrides)
        launcher = await resources.enter_async_context(running(settings))
        edge, envoy = await resources.enter_async_context(_edge(folder, launcher.address()))
        directly = await resources.enter_async_context(Client(launcher.address(), tls=launcher.client_tls))
        through = await resources.enter_async_context(Client(edge, tls=Tls(folder.ca)))
        await _begins(through)
        for repeat in range(-1, _REPEATS):
            for cost in costs.values():
                chosen = [next(prompts) for _ in range(cost.num_streams)]
                await through_gateway(directly, chosen, 1, speculation=False)  # Both find the prompts computed.
                ways = [(cost.through, through), (cost.directly, directly)]
                for runs, client in ways if repeat % 2 else reversed(ways):
                    before = sum(envoy.cpu_times()[:2])
                    measured = await through_gateway(client, chosen, _NUM_TOKENS[cost.num_streams], speculation=True)
                    if repeat >= 0:  # The one before is to warm up.
                        runs.append(measured)
                        if client is through:
                            cost.processor_seconds.append(sum(envoy.cpu_times()[:2]) - before)
    return list(costs.values())


@asynccontextmanager
async def _edge(certificates: CertificateFolder, gateway: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Address and process of an Envoy with the files that ship; of those only addresses and ports are others here."""
    folder = certificates.path / "envoy"
    shutil.copytree(_FILES, folder)
    for name, identity in (("edge", Identity.GATEWAY), ("identity", Identity.CLIENT)):
        (folder / "certs" / name).mkdir(parents=True)
        shutil.copy(certificates.certificate(identity), folder / "certs" / name / "tls.crt")
        shutil.copy(certificates.key(identity), folder / "certs" / name / "tls.key")
        shutil.copy(certificates.ca, folder / "certs" / name / "ca.crt")
    config = yaml.safe_load((folder / "edge.yaml").read_text())
    port = free_port()
    resources = config["static_resources"]
    for listener in resources["listeners"]:
        listener["address"]["socket_address"] |= {
            "address": "127.0.0.1",
            "port_value": port if listener["name"] == "edge" else 0,
        }
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    (cluster,) = [each for each in resources["clusters"] if each["name"] == "gateway"]
    host, _, gateway_port = gateway.rpartition(":")
    address = {"socket_address": {"address": host, "port_value": int(gateway_port)}}
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    (folder / "edge.yaml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(_ENVOY, "-c", "edge.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _begins(client: Client) -> None:
    """Returns when a gateway answers through Envoy."""
    async with asyncio.timeout(_FIRST_SECONDS):
        while True:
            try:
                await client.tokenize("a")
                return
            except UnavailableError:
                await asyncio.sleep(0.1)
