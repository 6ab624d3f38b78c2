"""Shared fixtures: tiny models with random weights, made once a run, and a whole system in one event loop."""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from opentelemetry import metrics

from gateway.lifespan import gateway_lifespan
from paceline import Client, Tls
from support.databases import database, database_url, postgres
from support.served import served
from support.system import StartGateway, System, gateway_settings, start_system
from support.tiny import save_noisy, save_tiny, save_tokenizer

__all__ = ["database", "database_url", "postgres"]

# Machines that run tests are shared: how long an example takes says nothing.
settings.register_profile("paceline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("paceline")
# What one test's verifier measures says nothing to the next, nor to the user's own.
os.environ["PACELINE_VERIFIER_VERDICT_FILE"] = ""
# What is computed once more at random would be counted where a test counts; those of it say what share they want.
os.environ["PACELINE_GATEWAY_AUDIT_SHARE"] = "0"
# Tests of what speculation does need it, pay or not; whether it pays is measured where a test says so.
os.environ["PACELINE_VERIFIER_SPECULATION"] = "always"
# Until it is told where to, OpenTelemetry keeps what is to be measured for good: each test's engine, with its model.
metrics.set_meter_provider(metrics.NoOpMeterProvider())


def pytest_collection_finish() -> None:
    """What was imported stays: garbage is looked for elsewhere."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_test_process() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama in float32 with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("target")
    save_tiny(folder, "llama", seed=0)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def draft_folder(tmp_path_factory: pytest.TempPathFactory, target_folder: str) -> str:
    """The target with a little noise on its weights: a draft that is right often, and not always."""
    return save_noisy(tmp_path_factory.mktemp("draft"), target_folder)


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the same vocabulary that has nothing to do with the target."""
    return save_tiny(tmp_path_factory.mktemp("random"), "llama", seed=99)


@pytest.fixture
async def system(target_folder: str, draft_folder: str) -> AsyncIterator[System]:
    """Draft, verifier and gateway over real gRPC on loopback, in this event loop."""
    async with start_system(target_folder, [draft_folder]) as running:
        yield running


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def start_gateway(tokenizer_folder: Path) -> StartGateway:
    """Starts a gateway for these verifiers and drafts."""

    @asynccontextmanager
    async def start(verifiers: list[str], drafts: list[str] | None = None, **settings: Any) -> AsyncIterator[System]:
        settings = {"resume_seconds": 5.0, **settings}
        gateway = gateway_settings("fake", str(tokenizer_folder), verifiers, drafts or (), **settings)
        tls = None if gateway.server.tls is None else Tls(gateway.channel_tls.ca)
        async with served(gateway_lifespan(gateway), gateway.server) as address, Client(address, tls=tls) as client:
            yield System(client, address, verifiers[0], drafts or [])

    return start
