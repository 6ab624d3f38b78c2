"""Who may import whom: the lines of the architecture, enforced."""

import ast
from pathlib import Path

import pytest

OF_SERVICE = ("servicer", "lifespan", "metrics", "settings", "client", "__main__")
"""What makes a process of the draft's role."""
SERVICES = ("draft", "verifier", "prefix_cache", "adapter_store")
TREES = ("paceline", "gateway", "services")
TORCH = ("torch", "safetensors", "numba")
STUBS = ("paceline.v1", "paceline.internal")


def imported(source: str) -> set[str]:
    """Full names of all modules that a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def violations(path: str, source: str) -> list[str]:
    """What a file of the tree imports and must not."""
    names = imported(source)
    parts = Path(path).with_suffix("").parts

    def under(*roots: str) -> set[str]:
        return {name for name in names if any(name == root or name.startswith(root + ".") for root in roots)}

    others = {f"services.{name}" for name in SERVICES}
    match parts:
        case ("paceline", "cli" | "__main__", *_):
            return sorted(under("gateway", "services") - under("services.local"))
        case ("paceline", *_):
            return sorted(under("gateway", "services", "paceline.cli"))
        case ("services", "common", *_):
            client = under("paceline") - under("paceline.channel", "paceline.errors", "paceline.tls") - {"paceline"}
            beyond = {name for name in under("services") if not name.startswith("services.common")} - {"services"}
            return sorted(under(*TORCH, "gateway") | client | beyond)
        case ("services", "engine", *_):
            return sorted(under(*STUBS, "gateway", "grpc", "services.model_server", "services.local", *others))
        case ("services", "model_server", *_):
            return sorted(under("gateway", "services.local") | _not_clients(under(*others)))
        case ("services", "local", *_):
            allowed = {
                name for name in under(*others, "services.model_server", "gateway") if "settings" in name.split(".")
            }
            clients = {name for name in under("services.model_server") if _is_client(name)}
            packages = {"gateway", "services.model_server", *others}
            return sorted(under(*TORCH, "services.engine.engine") | (under(*packages) - allowed - clients - packages))
        case ("services", ("draft" | "verifier"), *_):
            forbidden = under("gateway", "services.local") | _not_clients(under(*others - {f"services.{parts[1]}"}))
            if parts == ("services", "verifier", "own_draft"):  # The draft's role, in the verifier's process.
                forbidden -= under("services.draft") - under(*(f"services.draft.{each}" for each in OF_SERVICE))
            if parts[-1] == "client":
                forbidden |= under(*TORCH, "services.engine")
            return sorted(forbidden)
        case ("services", own, *_):
            forbidden = under("torch", "peft", "transformers", "gateway", "services.engine", "services.model_server")
            forbidden |= under("services.local") | _not_clients(under(*others - {f"services.{own}"}))
            return sorted(forbidden | (under("safetensors") if own == "prefix_cache" else set()))
        case ("gateway", *_):
            forbidden = under(*TORCH, "services.engine", "services.local", "paceline.cli")
            return sorted(forbidden | _not_clients(under(*others, "services.model_server")))
    return []


def _not_clients(names: set[str]) -> set[str]:
    return {name for name in names if not _is_client(name)}


def _is_client(name: str) -> bool:
    """services.verifier.client and what is taken from it; the bare package names no code."""
    parts = name.split(".")
    return len(parts) == 2 or parts[2] == "client"


def sources(repository: Path, tree: str) -> list[Path]:
    return [path for path in sorted((repository / tree).rglob("*.py")) if "_pb2" not in path.name]


@pytest.mark.parametrize("tree", TREES)
def test_imports_keep_to_the_architecture(repository: Path, tree: str) -> None:
    files = sources(repository, tree)
    assert len(files) > 5
    found = {
        str(path.relative_to(repository)): wrong
        for path in files
        if (wrong := violations(str(path.relative_to(repository)), path.read_text()))
    }
    assert not found


@pytest.mark.parametrize("tree", TREES)
def test_packages_have_empty_init_files(repository: Path, tree: str) -> None:
    inits = sorted((repository / tree).rglob("__init__.py"))
    assert inits
    assert [path for path in inits if path.read_text().strip()] in ([], [repository / "paceline" / "__init__.py"])
    folders = {path.parent for path in (repository / tree).rglob("*.py")}
    assert folders == {path.parent for path in inits}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("paceline/client.py", "import services.common.seeds"),
        ("paceline/client.py", "from paceline.cli.terminal import fail"),
        ("paceline/cli/generate.py", "from services.common.settings import ProcessSettings"),
        ("services/common/server.py", "import torch"),
        ("services/common/server.py", "from paceline.v1 import model_pb2"),
        ("services/common/server.py", "from paceline.client import Client"),
        ("services/engine/engine.py", "from services.verifier.client import VerifierClient"),
        ("services/engine/engine.py", "def f():\n    import grpc"),
        ("services/engine/engine.py", "from services.model_server.streams import OpenStreams"),
        ("services/model_server/opening.py", "from services.verifier.target_role import TargetRole"),
        ("services/local/launcher.py", "from services.verifier.lifespan import verifier_lifespan"),
        ("services/draft/servicer.py", "from services.verifier.target_role import TargetRole"),
        ("services/verifier/client.py", "from services.engine.engine import Engine"),
        ("services/verifier/servicer.py", "import gateway.generation.relay"),
        ("services/prefix_cache/tiers.py", "import safetensors"),
        ("services/adapter_store/checks.py", "from peft import LoraConfig"),
        ("services/adapter_store/checks.py", "import torch"),
        ("services/adapter_store/checks.py", "from services.engine.adapter import read_adapter"),
        ("gateway/generation/relay.py", "import torch.nn"),
        ("gateway/generation/relay.py", "from services.verifier import target_role"),
        ("gateway/lifespan.py", "from services.local.launcher import Launcher"),
    ],
)
def test_the_check_finds_violations(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gateway/generation/relay.py", "from services.verifier.client import VerifierClient"),
        ("services/local/system.py", "from services.verifier.settings import VerifierSettings"),
        ("services/common/server.py", "from paceline.errors import PacelineError"),
        ("paceline/cli/up.py", "from services.local.up import keep_running"),
    ],
)
def test_the_check_allows_what_the_architecture_allows(path: str, source: str) -> None:
    assert not violations(path, source)
