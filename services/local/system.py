"""What runs on one machine: a system of processes, each with its typed settings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gateway.settings import GatewaySettings
from services.adapter_store.settings import AdapterStoreSettings
from services.common.folders import data_folder
from services.common.identities import Identity
from services.common.settings import ProcessSettings, in_words
from services.common.tokens import new_signing_key, public_key
from services.draft.settings import DraftSettings
from services.local.certificate_folder import CertificateFolder
from services.local.errors import LaunchError
from services.local.pair import Pair
from services.local.ports import free_port
from services.local.threads import Threads, divide_threads
from services.prefix_cache.settings import PrefixCacheSettings
from services.verifier.settings import VerifierSettings

GATEWAY = "gateway"
_CALLERS = (Identity.GATEWAY, Identity.VERIFIER, Identity.DRAFT)
"""Processes that call services."""
_CACHE_NICENESS = 10
"""Moving blocks gives way to the steps of the models on the same cores."""
_PORTS_A_MODEL = 10
_FIRST_METRICS_PORT = 9464
"""Prometheus reads the first process there, and each that follows one port further."""
_KINDS: dict[str, type[ProcessSettings]] = {
    "prefix-cache": PrefixCacheSettings,
    "adapter-store": AdapterStoreSettings,
    "verifier": VerifierSettings,
    "draft": DraftSettings,
    GATEWAY: GatewaySettings,
}


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """What to start. Processes without a port here take free ones."""

    models: tuple[Pair, ...]
    host: str = "127.0.0.1"
    ports: Mapping[str, int] = field(default_factory=dict)
    """Ports by name of the process."""
    log_level: str = "INFO"
    metrics: bool = False
    """Whether Prometheus can read every process, each on a port of its own."""
    restart: bool = False
    """Whether a process that dies is started again, a few times."""
    prefix_cache: bool = False
    """Whether to start a prefix cache."""
    cache_folder: str | None = None
    """Where the prefix cache keeps blocks on disk; none: in memory alone."""
    adapter_store: bool = False
    """Whether to start an adapter store."""
    adapter_folder: str | None = None
    """Where the adapter store keeps adapters; none: in a folder that is deleted at the end."""
    database: str | None = None
    """Address of the gateway's database; none: a file that is deleted at the end, empty: the user's own."""
    certificates: CertificateFolder | None = None
    """What all connections are encrypted with, those between services by both ends; none: they are in plaintext."""
    ready_seconds: float = 600.0
    """How long all may take to get ready."""
    draft_addresses: tuple[str, ...] = ()
    """Where the gateway finds the drafts of the one model; none: those that are started."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More settings, by what `paceline serve` calls the process, nested as its settings are."""


class Process(NamedTuple):
    """One process of a system."""

    name: str
    """Its name in this system, such as "verifier", or "verifier small" where there are several."""
    kind: str
    """What `paceline serve` calls it."""
    settings: ProcessSettings

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.settings.server.port

    @property
    def address(self) -> str:
        """host:port for those on this machine."""
        return f"{_local(self.settings.server.host)}:{self.port}"

    @property
    def metrics_address(self) -> str:
        """host:port that Prometheus reads; empty where it cannot."""
        telemetry = self.settings.telemetry
        if not telemetry.is_read_by_prometheus:
            return ""
        return f"{_local(telemetry.prometheus_host)}:{telemetry.prometheus_port}"

    @property
    def has_engine(self) -> bool:
        """Whether it loads a model."""
        return self.kind in ("verifier", "draft")


class System(NamedTuple):
    """All processes, in the order in which they are started; the gateway is the last."""

    processes: tuple[Process, ...]
    signing_key: str
    """Signs tokens for prefix cache and adapter store."""
    restart: bool = False
    ready_seconds: float = 600.0
    certificates: CertificateFolder | None = None


def make_system(settings: SystemSettings, own_folder: Path) -> System:
    """The processes of these settings. What is only for now goes into `own_folder`.

    Raises ValueError when settings contradict each other.
    """
    return _Maker(settings, own_folder).system()


class _Maker:
    def __init__(self, settings: SystemSettings, own_folder: Path) -> None:
        self._settings = settings
        self._own_folder = own_folder
        self._signing_key = new_signing_key()
        self._token_keys = [public_key(self._signing_key)]
        self._made: list[Process] = []
        self._used_ports: set[int] = set(settings.ports.values())

    def system(self) -> System:
        settings = self._settings
        stores: dict[str, str] = {}
        if settings.prefix_cache:
            cache = {"niceness": _CACHE_NICENESS, "disk_folder": settings.cache_folder, "token_keys": self._token_keys}
            stores["prefix_cache"] = self._make("prefix-cache", "prefix-cache", cache).address
        if settings.adapter_store:
            folder = settings.adapter_folder or str(self._own_folder / "adapters")
            store = {"folder": folder, "token_keys": self._token_keys}
            stores["adapter_store"] = self._make("adapter-store", "adapter-store", store).address
        suffixes = _suffixes(settings.models)
        models = [self._pair(pair, suffix, stores) for pair, suffix in zip(settings.models, suffixes, strict=True)]
        known = {f"{kind}s": [address] for kind, address in stores.items()}
        database = settings.database
        if database is None:
            database = f"sqlite:///{self._own_folder / 'gateway.sqlite'}"
        gateway = {"models": models, "signing_key": self._signing_key, "database": database or None, **known}
        self._make(GATEWAY, GATEWAY, gateway)
        return System(
            tuple(self._made), self._signing_key, settings.restart, settings.ready_seconds, settings.certificates
        )

    def _pair(self, pair: Pair, suffix: str, stores: Mapping[str, str]) -> dict[str, Any]:
        """Makes the processes of a model, and returns what the gateway is to know of it."""
        num_cores = max(1, (os.cpu_count() or 1) // len(self._settings.models))
        is_apart = pair.draft is not None and pair.draft_process
        if pair.draft_threads and not pair.draft_process:
            raise LaunchError(
                f"model {pair.public_id!r}: without a process of its own its draft has the target's threads"
            )
        divided = divide_threads(num_cores, with_draft=is_apart)
        threads = Threads(pair.threads or divided.verifier, pair.draft_threads or divided.draft)
        common = {"token_keys": self._token_keys, **stores}
        target: dict[str, Any] = {"engine": pair.engine(pair.model, threads.verifier), "model_id": pair.public_id}
        if pair.draft is not None and not is_apart:
            target["draft"] = pair.engine(pair.draft, threads.verifier)
        verifier = self._make(f"verifier{suffix}", "verifier", {**target, **common})
        drafts = list(self._settings.draft_addresses)
        if pair.draft is not None and is_apart:
            own: dict[str, Any] = {"engine": pair.engine(pair.draft, threads.draft), **common}
            if pair.device != "cuda" and threads.share(num_cores):
                own["ahead"] = False
            draft = self._make(f"draft{suffix}", "draft", own)
            drafts = drafts or [draft.address]
        return {
            "id": pair.public_id,
            "tokenizer": pair.model,
            "verifiers": [verifier.address],
            "drafts": drafts,
            "generation_config": pair.generation_config,
        }

    def _make(self, name: str, kind: str, own: Mapping[str, Any]) -> Process:
        settings = self._settings
        values = {
            "server": {"host": settings.host, "port": settings.ports.get(name) or self._free_port()},
            "telemetry": self._telemetry(),
            **own,
        }
        if settings.certificates is not None:
            values = _merged(values, _encrypted(settings.certificates, Identity(kind)))
        try:
            made = _KINDS[kind](**_merged(values, settings.overrides.get(kind, {})))
        except ValidationError as error:
            raise LaunchError(f"settings of the {name}: {in_words(error)}") from None
        self._made.append(Process(name, kind, made))
        return self._made[-1]

    def _telemetry(self) -> dict[str, Any]:
        """What the next process logs and measures."""
        telemetry: dict[str, Any] = {"log_level": self._settings.log_level, "log_format": "text"}
        if self._settings.metrics:
            telemetry |= {"metrics": "prometheus", "prometheus_port": _FIRST_METRICS_PORT + len(self._made)}
        return telemetry

    def _free_port(self) -> int:
        while (port := free_port()) in self._used_ports:
            pass
        self._used_ports.add(port)
        return port


def named_ports(models: Sequence[Pair], verifier: int, draft: int) -> dict[str, int]:
    """Ports of the processes of models: those of the first, and ten more for each that follows."""
    ports: dict[str, int] = {}
    for number, suffix in enumerate(_suffixes(models)):
        ports[f"verifier{suffix}"] = verifier + _PORTS_A_MODEL * number
        ports[f"draft{suffix}"] = draft + _PORTS_A_MODEL * number
    return ports


def _encrypted(folder: CertificateFolder, identity: Identity) -> dict[str, Any]:
    """Settings of a process whose connections are encrypted. Who calls services shows a certificate, who calls
    a gateway does not. Raises LaunchError where the process has none.
    """
    if not (folder.has(identity) and folder.ca.exists()):
        raise LaunchError(f"{folder.path} has no certificate of the {identity}: `paceline certs make {folder.path}`")
    server = {"tls": folder.server(identity, with_callers=identity is not Identity.GATEWAY)}
    if identity not in _CALLERS:
        return {"server": server}
    return {"server": server, "channel_tls": folder.channels(identity).model_dump(mode="json")}


def _local(host: str) -> str:
    """The host by which this machine reaches a server of its own."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104


def _suffixes(models: Sequence[Pair]) -> list[str]:
    """What tells processes of the same kind apart."""
    return [f" {pair.public_id}" if len(models) > 1 else "" for pair in models]


def user_adapters() -> str:
    """Where the user's adapters are kept."""
    return str(data_folder() / "adapters")


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others over them, part by part."""
    merged = dict(values)
    for name, value in more.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
