"""What deployments say of processes, read by the processes' own settings."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import GatewaySettings
from services.adapter_store.settings import AdapterStoreSettings
from services.common.settings import ProcessSettings
from services.draft.settings import DraftSettings
from services.prefix_cache.settings import PrefixCacheSettings
from services.verifier.settings import VerifierSettings

SETTINGS: Mapping[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "verifier": VerifierSettings,
    "draft": DraftSettings,
    "prefix-cache": PrefixCacheSettings,
    "adapter-store": AdapterStoreSettings,
}
PORTS = {"gateway": 7100, "verifier": 7102, "draft": 7101, "prefix-cache": 7103, "adapter-store": 7104}
METRICS_PORTS = {"gateway": 9464, "verifier": 9466, "draft": 9465, "prefix-cache": 9467, "adapter-store": 9468}

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
"""A variable as compose writes it, with its default or with what is said where there is none."""


@cache
def secrets() -> dict[str, str]:
    """What deploy/environment.py makes."""
    script = Path(__file__).resolve().parents[2] / "deploy" / "environment.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in made.stdout.splitlines())


def filled(file: Path) -> str:
    """A compose file with its variables filled, as compose does."""

    def fill(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        if kind == "?":
            return secrets()[name]
        assert kind == "-", f"{name} has no default and nobody says that it is missing"
        return str(default)

    return VARIABLE.sub(fill, file.read_text())


def load(
    process: str, environment: Mapping[str, str], arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The settings that a process has in an environment, and in no other."""
    with monkeypatch.context() as patched:
        for name in os.environ:
            if name.startswith("PACELINE_"):
                patched.delenv(name)
        for name, value in environment.items():
            patched.setenv(name, value)
        return SETTINGS[process].load([*arguments])
