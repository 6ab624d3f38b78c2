"""What a wheel holds, and that a client needs little of it: in fresh processes, in any folder."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

HEAVY = ("torch", "transformers", "tokenizers", "pydantic", "numpy", "opentelemetry", "services", "gateway")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Hooks would write the stubs anew, under the feet of other tests.
    environment = {**os.environ, "HATCH_BUILD_NO_HOOKS": "true"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def run(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs code where the wheel and what it says it needs, with these extras, are all there is."""
    (info,) = unpacked.glob("*.dist-info")
    needed = [Requirement(line) for line in metadata.PathDistribution(info).requires or ()]
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(code: str, *arguments: str, extra: str = "") -> subprocess.CompletedProcess[str]:
        packages = tmp_path_factory.mktemp("packages")
        for name in _with_what_they_need([each for each in needed if _applies(each, extra)]):
            _link(name, packages)
        start = f"import sys; sys.path[1:1] = [{str(unpacked)!r}, {str(packages)!r}]; sys.argv[0] = 'paceline'\n"
        # Neither the tree nor what is installed beside it is on the path.
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", start + code, *arguments],
            cwd=elsewhere, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _with_what_they_need(requirements: list[Requirement]) -> set[str]:
    """Names of installed distributions, with those that they need in turn."""
    found: set[str] = set()
    left = list(requirements)
    while left:
        requirement = left.pop()
        if requirement.name in found:
            continue
        found.add(requirement.name)
        for line in metadata.requires(requirement.name) or ():
            more = Requirement(line)
            if any(_applies(more, extra) for extra in ("", *requirement.extras)):
                left.append(more)
    return found


def _link(name: str, folder: Path) -> None:
    distribution = metadata.distribution(name)
    for top in {Path(str(file)).parts[0] for file in distribution.files or ()} - {".."}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def test_nothing_but_paceline_lies_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "paceline",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }


def test_stubs_services_and_the_pair_are_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "paceline/py.typed",
        "paceline/v1/inference_pb2.py",
        "paceline/v1/inference_pb2.pyi",
        "paceline/internal/v1/verifier_pb2_grpc.py",
        "paceline/_server/gateway/__main__.py",
        "paceline/_server/services/verifier/__main__.py",
        "paceline/_server/services/local/launcher.py",
        "paceline/_server/models/target/config.json",
        "paceline/_server/models/target/tokenizer.json",
        "paceline/_server/models/draft/model.safetensors",
        "paceline/_server/models/adapters/two-spaces/adapter_config.json",
        "paceline/_server/models/assistant/adapters/pirate/adapter_config.json",
    }
    assert not [name for name in names if "test" in name or name.startswith("paceline/_server/models/corpus")]


def test_a_client_needs_few_packages_and_loads_nothing_heavy(run: Run) -> None:
    done = run(f"""
from paceline import Client, SyncClient
import paceline.cli.app
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
print(loaded, Client.__module__)
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[] paceline.client"


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["serve", "-h"], ["adapters", "--help"], ["bench", "-h"]])
def test_the_command_line_needs_no_extra(run: Run, arguments: list[str]) -> None:
    done = run("from paceline.cli.app import app; app()", *arguments)
    assert done.returncode == 0, done.stderr
    assert "paceline" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"), [(["serve", "gateway"], "serve"), (["serve", "verifier"], "engine"), (["up"], "engine")]
)
def test_what_needs_an_extra_says_which(run: Run, arguments: list[str], extra: str) -> None:
    done = run("from paceline.cli.app import app; app()", *arguments)
    assert done.returncode == 1
    assert f"pip install 'paceline[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_processes_are_found_in_an_installation(run: Run, unpacked: Path) -> None:
    done = run("from paceline.cli.app import app; app()", "serve", "gateway", "--help", extra="serve")
    assert done.returncode == 0, done.stderr
    assert "usage: paceline serve gateway" in done.stdout
    done = run(
        "from paceline.cli.serve import SERVE, reach; reach(SERVE)\n"
        "import gateway.lifespan, services.prefix_cache.lifespan, services.adapter_store.lifespan\n"
        "from services.local.pair import shipped_adapters, shipped_model\n"
        "print(shipped_model('target'), *shipped_adapters().values())\n"
        "print('torch' in sys.modules)",
        extra="serve",
    )
    assert done.returncode == 0, done.stderr
    folders, has_torch = done.stdout.splitlines()
    models = unpacked / "paceline" / "_server" / "models"
    adapters = ("adapters/docstrings", "adapters/two-spaces", "assistant/adapters/json", "assistant/adapters/pirate")
    assert folders.split() == [str(models / name) for name in ("target", *adapters)]
    assert has_torch == "False"


def test_the_demos_target_is_made_in_an_installation_without_torch(run: Run) -> None:
    done = run(
        "from paceline.cli.serve import SERVE, reach; reach(SERVE)\n"
        "import pathlib, paceline.cli.demo\n"
        "from services.engine.enlarged import enlarge\n"
        "from services.local.usual import shipped_model\n"
        "enlarge(pathlib.Path(shipped_model('target')), pathlib.Path('larger'), 7, 1344)\n"
        "print(*sorted(path.name for path in pathlib.Path('larger').iterdir()), 'torch' in sys.modules)",
        extra="serve",
    )
    assert done.returncode == 0, done.stderr
    *files, has_torch = done.stdout.split()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert has_torch == "False"


@pytest.mark.parametrize(
    "module",
    ["gateway.__main__", "services.prefix_cache.__main__", "services.adapter_store.__main__", "services.local.up"],
)
def test_processes_without_a_model_load_no_torch(repository: Path, module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=repository, check=False).returncode == 0
