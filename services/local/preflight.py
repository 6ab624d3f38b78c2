"""What certainly keeps a system from running, found before a process is started and told in one sentence."""

import ctypes
import errno
import importlib.util
import os
import runpy
import socket
from collections import abc
from contextlib import suppress
from pathlib import Path

from gateway.settings import GatewaySettings
from services.adapter_store.settings import AdapterStoreSettings
from services.common.settings import ProcessSettings
from services.engine.config import Device
from services.local.errors import LaunchError
from services.local.system import Process
from services.model_server.settings import ModelServerSettings
from services.prefix_cache.settings import PrefixCacheSettings

_SQLITE = "sqlite:///"
_OWNERS_ALONE = 0o700


def check_processes(processes: abc.Sequence[Process]) -> None:
    """Raises LaunchError when one of them could not listen, keep what it is to keep, or run where it is to."""
    taken: dict[int, str] = {}
    for process in processes:
        for host, port in _listens(process.settings):
            if port in taken:
                raise LaunchError(f"port {port} is given to two: the {taken[port]} and the {process.name}")
            taken[port] = process.name
            if problem := _cannot_listen(host, port):
                raise LaunchError(f"{problem}; the {process.name} cannot listen there")
        for folder in _folders(process.settings):
            if problem := _cannot_write(folder):
                raise LaunchError(f"the {process.name} cannot keep anything in {folder}: {problem}")
        if isinstance(process.settings, ModelServerSettings) and process.settings.engine.device is Device.CUDA:
            _check_gpu(process.name)


def _listens(settings: ProcessSettings) -> abc.Iterator[tuple[str, int]]:
    """Hosts and ports that a process listens on."""
    yield settings.server.host, settings.server.port
    if settings.telemetry.is_read_by_prometheus:
        yield settings.telemetry.prometheus_host, settings.telemetry.prometheus_port


def _cannot_listen(host: str, port: int) -> str:
    """Why no server can listen there; empty where one can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return f"{host} is no address of this machine: {error.strerror}"
    with socket.socket(family, kind) as probe:
        # Connections that have just been closed do not keep a server from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {port} is taken"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"{host} is no address of this machine"
            return f"port {port}: {error.strerror}"
    return ""


def _folders(settings: ProcessSettings) -> abc.Iterator[Path]:
    """Folders that a process writes to; it makes those that are not there."""
    if isinstance(settings, AdapterStoreSettings):
        yield settings.folder
    elif isinstance(settings, PrefixCacheSettings) and settings.disk_folder is not None:
        yield settings.disk_folder
    elif isinstance(settings, GatewaySettings) and settings.database_url.startswith(_SQLITE):
        yield Path(settings.database_url.removeprefix(_SQLITE)).parent


def _cannot_write(folder: Path) -> str:
    """Why a folder cannot be made or written to; empty where it can.

    What is made is its owner's alone (XDG Base Directory Specification): digests of keys may come to lie there.
    """
    try:
        for missing in reversed([parent for parent in folder.parents if not parent.exists()]):
            missing.mkdir(mode=_OWNERS_ALONE, exist_ok=True)
        folder.mkdir(mode=_OWNERS_ALONE, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _check_gpu(name: str) -> None:
    """Raises LaunchError where torch can see no GPU. Loading torch to ask it would take seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return
    built = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    if built.get("hip"):
        return
    if built.get("cuda") is None:
        raise LaunchError(f"the {name} is to run on a GPU, and the torch that is installed is one for CPUs alone")
    with suppress(OSError):
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value:
            return
    raise LaunchError(f"the {name} is to run on a GPU, and there is none here")
