"""The composed system as real processes: what compose.yaml tells them, with addresses in the place of names."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from paceline import Client, Tls, UnauthenticatedError
from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder
from support.deployed import PORTS, filled
from support.envoy import StartEnvoy
from support.redis_server import free_ports
from support.system import collect

pytestmark = pytest.mark.timeout(240)
_SECONDS = 120


def placed(
    process: str, said: Mapping[str, str], ports: Mapping[str, int], places: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a process with the places of this machine."""
    prefix = f"PACELINE_{process.upper().replace('-', '_')}_"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PACELINE_")}
    for name, value in said.items():
        for old, new in places.items():
            value = value.replace(old, new)
        environment[name] = value
    own = {f"{prefix}SERVER__PORT": str(ports[process]), "PACELINE_ADDRESS": f"127.0.0.1:{ports[process]}"}
    return {**environment, **own}


def end_of(log: Path) -> str:
    return log.read_text()[-2000:]


async def run(*arguments: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """A command of ours to its end: its code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline", *arguments),
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode().strip()


@asynccontextmanager
async def serving(process: str, environment: Mapping[str, str], log: Path) -> AsyncIterator[None]:
    """A process that serves, as its image's own health check says."""
    with log.open("wb") as err:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "paceline", "serve", process), env=environment, stderr=err
        )
        try:
            async with asyncio.timeout(_SECONDS):
                while (await run("health", environment=environment))[0]:
                    assert started.returncode is None, end_of(log)
            yield
        finally:
            if started.returncode is None:
                started.terminate()
            assert await started.wait() == 0, end_of(log)


async def test_what_compose_says_of_processes_makes_a_system(
    repository: Path,
    certificates: CertificateFolder,
    start_edge: StartEnvoy,
    target_folder: str,
    draft_folder: str,
    tmp_path: Path,
) -> None:
    services: dict[str, Any] = yaml.safe_load(filled(repository / "deploy" / "compose.yaml"))["services"]
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    metrics = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    async with AsyncExitStack() as stack:
        environments = {}
        for process in ("adapter-store", "prefix-cache", "verifier", "draft", "gateway"):
            places = {
                "/certificates/own.pem": str(certificates.certificate(Identity(process))),
                "/certificates/own-key.pem": str(certificates.key(Identity(process))),
                "/certificates/ca.pem": str(certificates.ca),
                "/models/target": target_folder,
                "/models/draft": draft_folder,
                "/var/lib/paceline": str(tmp_path / process),
                "http://otel-collector:4317": f"http://127.0.0.1:{free_ports(1)[0]}",
                '"0.0.0.0"': f'"127.0.0.1", "prometheus_port": {metrics[process]}',
                **{f"{name}:{port}": f"127.0.0.1:{ports[name]}" for name, port in PORTS.items()},
            }
            said = dict(services[process]["environment"])
            said.pop("PACELINE_PREFIX_CACHE_REDIS_URL", None)
            if process == "gateway":
                said["PACELINE_GATEWAY_DATABASE"] = f"sqlite:///{tmp_path / 'gateway.sqlite'}"
            environments[process] = placed(process, said, ports, places)
        code, key = await run("keys", "first", environment=environments["gateway"])
        assert (code, key[:4]) == (0, "pcl_")
        for process, environment in environments.items():
            await stack.enter_async_context(serving(process, environment, tmp_path / f"{process}.log"))
        edge = await stack.enter_async_context(start_edge([f"127.0.0.1:{ports['gateway']}"]))
        tls = Tls(certificates.ca)
        async with Client(edge.address("edge"), key=key, tls=tls) as client:
            reply = await collect(client.generate("def add(", max_tokens=24, temperature=0))
            assert len(reply.token_ids) > 0
            status = await client.get_status()
        async with Client(edge.address("edge"), tls=tls) as client:
            with pytest.raises(UnauthenticatedError):
                await collect(client.generate("def add(", max_tokens=4))
    assert len(status.services) == 4
