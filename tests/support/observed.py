"""A system of real processes with the shipped pair, and all that watches it."""

import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client.parser import text_string_to_metric_families

from paceline import Client
from services.engine.config import EngineConfig
from services.engine.engine import Engine
from services.local.launcher import running
from services.local.pair import Pair, shipped_model
from services.local.system import SystemSettings
from services.verifier.load import Load, Way
from services.verifier.rate import Ratio
from services.verifier.verdicts import Verdicts, setup_of
from support.collector import Collector, collecting
from support.lines import Lines
from support.redis_server import free_ports

KINDS = ("gateway", "verifier", "draft", "prefix-cache", "adapter-store")
ADAPTERS = ("two-spaces", "docstrings")
_OFTEN = {"OTEL_METRIC_EXPORT_INTERVAL": "1000", "OTEL_BSP_SCHEDULE_DELAY": "200"}
"""Milliseconds between two exports."""


@dataclass(frozen=True)
class Observed:
    """A running system, and who watches."""

    client: Client
    collector: Collector
    lines: Lines
    ports: Mapping[str, int]
    """Where Prometheus reads each kind of process."""

    async def samples(self, kind: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """What a process shows to Prometheus: values by name and labels."""
        text = await asyncio.to_thread(self._read, kind)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def values(self, kind: str, name: str) -> list[tuple[dict[str, str], float]]:
        """All samples of one name, with their labels."""
        return [(dict(labels), value) for (of, labels), value in (await self.samples(kind)).items() if of == name]

    async def types(self, kind: str) -> dict[str, str]:
        """Types of a process's metrics by name."""
        text = await asyncio.to_thread(self._read, kind)
        return {family.name: family.type for family in text_string_to_metric_families(text)}

    def _read(self, kind: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[kind]}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    async def say(self, prompt: str, **options: Any) -> tuple[str, str]:
        """A request to its end: its id and its text."""
        request_id, text = "", ""
        async for event in self.client.generate(prompt, **options):
            request_id = event.started.request_id or request_id
            text += event.delta.text
        return request_id, text


@asynccontextmanager
async def observed(folder: Path) -> AsyncIterator[Observed]:
    """A system with two places for sequences and one for adapters, whose requests are all traced and audited.

    It always speculates, and has from an earlier day what was measured of that.
    """
    target, draft = shipped_model("target"), shipped_model("draft")
    ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
    async with collecting() as collector:
        common = {"traces": "otlp", "metrics": "both", "otlp_endpoint": collector.address}
        common |= {"log_format": "json", "log_level": "DEBUG"}
        overrides: dict[str, dict[str, Any]] = {
            kind: {"telemetry": {**common, "prometheus_port": port}} for kind, port in ports.items()
        }
        overrides["gateway"] |= {"audit_share": 1.0, "max_active_requests": 8}
        pair = Pair(model=target, draft=draft, threads=1, draft_threads=1)
        overrides["verifier"] |= {"engine": {"max_sequences": 2, "max_adapters": 1}, "speculation": "always"}
        overrides["verifier"] |= {"verdict_file": await asyncio.to_thread(_verdicts, pair, folder / "verdicts.json")}
        settings = SystemSettings((pair,), prefix_cache=True, adapter_store=True, overrides=overrides)
        lines = Lines()
        with mock.patch.dict(os.environ, _OFTEN):
            async with running(settings, lines) as launcher, Client(launcher.address()) as client:
                for name in ADAPTERS:
                    await client.upload_adapter(Path(target).parent / "adapters" / name, name)
                yield Observed(client, collector, lines, ports)


def _verdicts(pair: Pair, path: Path) -> str:
    """A file with what was measured of speculation for this pair on this machine."""
    config = EngineConfig(**{**pair.engine(pair.model, 1), "kv_bytes": 1 << 22})
    load = Load(1, "d" * 12, Way.DRAFT, {Way.DRAFT: Ratio(0.4, 50.0, 6)})
    Verdicts(str(path), setup_of(Engine(config))).save([load])
    return str(path)


def logged(line: str) -> dict[str, Any]:
    """The object of a process's line, behind its name."""
    read = json.loads(line[line.index("{") :])
    assert isinstance(read, dict)
    return read
