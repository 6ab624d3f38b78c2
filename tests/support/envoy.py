"""A real Envoy with the files of deploy/envoy: of what ships, only addresses and ports are others."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder

ENVOY = Path(sys.executable).parent / "envoy"
FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "envoy"
_START_SECONDS = 30


def lay(path: Path, certificates: CertificateFolder, identity: Identity) -> Path:
    """What the folder that Envoy runs in holds: the files that ship, and certificates under the names that they say."""
    path.mkdir()
    for file in FOLDER.glob("*.yaml"):
        shutil.copy(file, path)
    for folder, shown in (("edge", Identity.GATEWAY), ("identity", identity)):
        into = path / "certs" / folder
        into.mkdir(parents=True)
        shutil.copy(certificates.certificate(shown), into / "tls.crt")
        shutil.copy(certificates.key(shown), into / "tls.key")
        shutil.copy(certificates.ca, into / "ca.crt")
    return path


def place(config: dict[str, Any], services: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The configuration with free ports to listen on, and with these addresses of services by their clusters."""
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    for listener in config["static_resources"]["listeners"]:
        listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": 0}
    for cluster in config["static_resources"]["clusters"]:
        endpoints = []
        for address in services.get(cluster["name"], ()):
            host, _, port = address.rpartition(":")
            endpoints.append({"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}})
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return config


@dataclass
class Envoy:
    """A running proxy."""

    folder: Path
    admin: str
    process: asyncio.subprocess.Process
    ports: dict[str, int]
    """By the name of the listener."""

    def address(self, listener: str) -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    async def ask(self, path: str) -> str:
        """What the administration answers."""
        async with httpx2.AsyncClient() as client:
            return (await client.get(f"http://{self.admin}{path}")).text

    async def healthy(self, cluster: str, count: int) -> None:
        """Returns when so many replicas of a service can be used."""
        async with asyncio.timeout(_START_SECONDS):
            while await self._num_healthy(cluster) != count:
                await asyncio.sleep(0.02)

    async def idle(self) -> None:
        """Returns when nothing runs that is counted where replicas are chosen."""
        async with asyncio.timeout(_START_SECONDS):
            while True:
                stats = await self.ask(r"/stats?filter=^cluster\.(verifier|draft)\.upstream_rq_active$")
                if all(line.endswith(": 0") for line in stats.splitlines()):
                    return
                await asyncio.sleep(0.01)

    def lines(self) -> list[dict[str, Any]]:
        """The access log."""
        text = (self.folder / "stdout").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    async def line(self, path: str) -> dict[str, Any]:
        """The first line of the access log about a path; Envoy writes it when the call is over, and not at once."""
        async with asyncio.timeout(_START_SECONDS):
            while not (found := [line for line in self.lines() if line["path"] == path]):
                await asyncio.sleep(0.05)
        return found[0]

    async def _num_healthy(self, cluster: str) -> int:
        clusters = json.loads(await self.ask("/clusters?format=json"))["cluster_statuses"]
        (status,) = [status for status in clusters if status["name"] == cluster]
        states = [host["health_status"] for host in status.get("host_statuses", ())]
        return sum(set(state) == {"eds_health_status"} for state in states)


StartEnvoy = Callable[..., AbstractAsyncContextManager[Envoy]]
"""Starts one before lists of services."""


@asynccontextmanager
async def running_envoy(
    folder: Path, name: str, services: Mapping[str, Sequence[str]], **changed: Any
) -> AsyncIterator[Envoy]:
    """An Envoy with one of the configurations of a folder; `changed` is given to it behind placing."""
    config = place(yaml.safe_load((folder / f"{name}.yaml").read_text()), services)
    for change in changed.values():
        change(config)
    file, admin = folder / "placed.yaml", folder / "admin"
    admin.unlink(missing_ok=True)
    file.write_text(yaml.safe_dump(config))
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = await asyncio.create_subprocess_exec(
            *(ENVOY, "-c", "placed.yaml", "--admin-address-path", "admin", "--disable-hot-restart"),
            *("--concurrency", "1", "--log-level", "warning", "--file-flush-interval-msec", "50"),
            *("--drain-time-s", "2"),
            cwd=folder, stdout=out, stderr=err,
        )  # fmt: skip
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not (admin.exists() and admin.read_text()):
                assert process.returncode is None, (folder / "stderr").read_text()
                await asyncio.sleep(0.02)
            envoy = Envoy(folder, admin.read_text(), process, {})
            while "LIVE" not in await envoy.ask("/ready"):
                await asyncio.sleep(0.02)
        listeners = json.loads(await envoy.ask("/listeners?format=json"))["listener_statuses"]
        envoy.ports = {each["name"]: each["local_address"]["socket_address"]["port_value"] for each in listeners}
        yield envoy
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
