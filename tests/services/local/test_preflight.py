"""What keeps a system from running is told in a sentence, and before a process is started."""

import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from services.local.errors import LaunchError
from services.local.launcher import Launcher
from services.local.pair import Pair
from services.local.preflight import check_processes
from services.local.system import SystemSettings, make_system

HERE = SystemSettings(
    (Pair(model="org/large", draft="org/small"),), prefix_cache=True, adapter_store=True, metrics=True
)


def check(folder: Path, settings: SystemSettings) -> None:
    check_processes(make_system(settings, folder).processes)


def test_what_can_run_passes_and_its_folders_are_made(tmp_path: Path) -> None:
    folders = [tmp_path / "far" / name for name in ("adapters", "blocks", "database")]
    settings = replace(HERE, adapter_folder=str(folders[0]), cache_folder=str(folders[1]), metrics=False)
    check(tmp_path, replace(settings, database=f"sqlite:///{folders[2]}/gateway.sqlite"))
    assert all(folder.is_dir() for folder in folders)


def test_nobody_else_reads_the_folders_that_are_made(tmp_path: Path) -> None:
    kept = tmp_path / "data" / "paceline"
    settings = replace(HERE, adapter_folder=str(kept / "adapters"), cache_folder=str(kept / "blocks"), metrics=False)
    check(tmp_path, replace(settings, database=f"sqlite:///{kept}/gateway.sqlite"))
    for folder in (kept.parent, kept, kept / "adapters", kept / "blocks"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_port_that_somebody_else_listens_on_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        launcher = Launcher(make_system(replace(HERE, ports={"draft": port}, metrics=False), tmp_path))
        with pytest.raises(LaunchError, match=f"^port {port} is taken; the draft cannot listen there$"):
            await launcher.start()
        assert not launcher.children


def test_a_port_of_metrics_that_somebody_else_listens_on_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = {"draft": {"telemetry": {"prometheus_port": port}}}
        with pytest.raises(LaunchError, match=f"^port {port} is taken; the draft cannot listen there$"):
            check(tmp_path, replace(HERE, overrides=taken))


def test_a_port_that_is_given_twice_is_named_with_both(tmp_path: Path) -> None:
    ports = {"draft": 56_990, "gateway": 56_990}
    with pytest.raises(LaunchError, match=r"^port 56990 is given to two: the draft and the gateway$"):
        check(tmp_path, replace(HERE, ports=ports, metrics=False))


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_named(tmp_path: Path, host: str) -> None:
    with pytest.raises(LaunchError, match=f"^{host} is no address of this machine"):
        check(tmp_path, replace(HERE, host=host))


@pytest.mark.parametrize("place", ["adapter_folder", "cache_folder", "database"])
def test_a_folder_that_cannot_be_is_named_with_who_needs_it(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    value = f"sqlite:///{folder}/gateway.sqlite" if place == "database" else str(folder)
    with pytest.raises(LaunchError, match=f"^the .* cannot keep anything in {folder}: Not a directory$"):
        check(tmp_path, replace(HERE, **{place: value}))  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_missed_without_loading_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # Where there is one, it is hidden.
    pair = Pair(model="org/large", device="cuda")
    with pytest.raises(LaunchError, match=r"^the verifier is to run on a GPU, and "):
        check(tmp_path, SystemSettings((pair,)))
