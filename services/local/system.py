"""What a system on one machine is made of, and the command line of each of its processes."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from services.common.lora.config import CONFIG_NAME

_ROOT = Path(__file__).resolve().parent.parent.parent
_CACHE_NICENESS = 10
"""Moving blocks gives way to the steps of the models on the same cores."""


class Threads(NamedTuple):
    """CPU threads of the two models."""

    verifier: int
    draft: int

    def share(self, num_cores: int) -> bool:
        """Whether the two cannot run at once without getting into each other's way."""
        return self.verifier + self.draft > num_cores


class LaunchError(RuntimeError):
    """A process ended or did not get ready."""


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What to start. Ports of 0 take free ones."""

    model: str
    draft_model: str | None
    host: str = "127.0.0.1"
    gateway_port: int = 0
    verifier_port: int = 0
    draft_port: int = 0
    device: str = "auto"
    dtype: str = "auto"
    verifier_threads: int | None = None
    draft_threads: int | None = None
    log_level: str = "INFO"
    restart: bool = False
    """Whether a process that dies is started again, a few times."""
    prefix_cache: bool = False
    """Whether to start a prefix cache."""
    adapter_store: bool = False
    """Whether to start an adapter store."""
    prefix_cache_port: int = 0
    cache_folder: str | None = None
    """Where the prefix cache keeps blocks on disk; none: in memory alone."""
    adapter_store_port: int = 0
    adapter_folder: str | None = None
    """Where the adapter store keeps adapters; none: in a folder that is deleted at the end."""
    ready_seconds: float = 600.0
    draft_addresses: tuple[str, ...] = ()
    """Where the gateway finds drafts; default: the one that is started."""
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """More command-line arguments by process name."""

    def threads(self) -> Threads:
        """CPU threads as set, else as the cores are divided."""
        divided = divide_threads(os.cpu_count() or 1, with_draft=self.draft_model is not None)
        return Threads(self.verifier_threads or divided.verifier, self.draft_threads or divided.draft)

    @property
    def names(self) -> list[str]:
        """Processes in order of start."""
        wanted = {
            "prefix_cache": self.prefix_cache, "adapter_store": self.adapter_store, "verifier": True,
            "draft": self.draft_model is not None, "gateway": True,
        }  # fmt: skip
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def arguments(self, name: str, addresses: Mapping[str, str], token_key: str) -> list[str]:
        """Command line of a process; `addresses` are those of all, `token_key` is the public key of tokens."""
        host, port = addresses[name].rsplit(":", 1)
        own = {
            "prefix_cache": self._cache_arguments, "adapter_store": self._store_arguments,
            "gateway": self._gateway_arguments, "verifier": self._engine_arguments, "draft": self._engine_arguments,
        }[name]  # fmt: skip
        arguments = [
            f"--server.host={host}",
            f"--server.port={port}",
            f"--telemetry.log-level={self.log_level}",
            "--telemetry.log-format=text",
        ]
        if name != "gateway":
            arguments.append(f"--token-keys={json.dumps([token_key])}")
        if name in ("verifier", "draft"):
            services = [service for service in ("prefix_cache", "adapter_store") if service in self.names]
            arguments += [f"--{service.replace('_', '-')}={addresses[service]}" for service in services]
        return [*arguments, *own(name, addresses), *self.extra.get(name, ())]

    def _cache_arguments(self, _name: str, _addresses: Mapping[str, str]) -> list[str]:
        folder = [] if self.cache_folder is None else [f"--disk-folder={self.cache_folder}"]
        return [f"--niceness={_CACHE_NICENESS}", *folder]

    def _store_arguments(self, _name: str, _addresses: Mapping[str, str]) -> list[str]:
        return [f"--folder={self.adapter_folder}"]

    def _gateway_arguments(self, _name: str, addresses: Mapping[str, str]) -> list[str]:
        drafts = list(self.draft_addresses) or ([addresses["draft"]] if self.draft_model else [])
        folder = Path(self.model)
        name = folder.resolve().name if folder.is_dir() else self.model
        model = {"id": name, "tokenizer": self.model, "verifiers": [addresses["verifier"]], "drafts": drafts}
        services = [service for service in ("prefix_cache", "adapter_store") if service in self.names]
        return [
            f"--models={json.dumps([model])}",
            *(f"--{service.replace('_', '-')}s={json.dumps([addresses[service]])}" for service in services),
        ]

    def _engine_arguments(self, name: str, _addresses: Mapping[str, str]) -> list[str]:
        threads = self.threads()
        arguments = [
            f"--engine.model={self.model if name == 'verifier' else self.draft_model}",
            f"--engine.device={self.device}",
            f"--engine.dtype={self.dtype}",
            f"--engine.num-threads={threads.verifier if name == 'verifier' else threads.draft}",
        ]
        if name == "draft" and self.device != "cuda" and threads.share(os.cpu_count() or 1):
            arguments.append("--ahead=false")
        return arguments


def data_folder() -> Path:
    """Where the user's data of this program lies (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "paceline"


def shipped_model(name: str) -> str:
    """Folder of the shipped "target" or "draft": in the installed package, else in the source tree."""
    for folder in (Path(__file__).resolve().parent / "pair" / name, _ROOT / "models" / name):
        if (folder / "config.json").exists():
            return str(folder)
    raise LaunchError(f"the shipped {name} model is not installed; name a model")


def shipped_adapters() -> list[Path]:
    """Folders of the adapters that ship with the pair, in order of their names."""
    for folder in (Path(__file__).resolve().parent / "pair" / "adapters", _ROOT / "models" / "adapters"):
        if found := sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}")):
            return found
    return []


def divide_threads(num_cores: int, *, with_draft: bool) -> Threads:
    """Divides cores between verifier and draft so that they do not fight for them.

    The draft is small: one core is all it can use. On two cores the verifier keeps both and the two take turns: the
    draft does not draft ahead, so that it is idle while the verifier verifies.
    """
    if not with_draft or num_cores <= 2:
        return Threads(max(1, num_cores), 1)
    return Threads(num_cores - 1, 1)
