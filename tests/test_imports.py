"""Who may import whom: the lines of the architecture, enforced."""

import ast
from pathlib import Path

import pytest

PROTOS = "paceline"
SERVICES = ("draft", "verifier", "prefix_cache", "adapter_store")
TORCH = ("torch", "safetensors")
WITHOUT_TORCH = ("services.prefix_cache", "services.adapter_store")


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
    part = ".".join(parts[:2]) if parts[0] == "services" else parts[0]

    def under(*roots: str) -> list[str]:
        return [name for name in names if any(name == root or name.startswith(root + ".") for root in roots)]

    forbidden: list[str] = []
    if part == "services.common":
        forbidden += under(*TORCH, PROTOS, "gateway", "services.engine", "services.wire")
        forbidden += under(*(f"services.{name}" for name in SERVICES))
    elif part == "services.engine":
        forbidden += under(PROTOS, "gateway", "services.wire", "grpc", *(f"services.{name}" for name in SERVICES))
    elif part == "services.wire":
        forbidden += under("gateway")
        forbidden += [name for name in under(*(f"services.{name}" for name in SERVICES)) if not _is_client(name)]
    elif part.startswith("services."):
        if part in WITHOUT_TORCH:
            forbidden += under("torch", "peft", "transformers", "services.engine", "services.wire")
        if part == "services.prefix_cache":
            forbidden += under("safetensors")
        others = [f"services.{name}" for name in SERVICES if f"services.{name}" != part]
        forbidden += under("gateway")
        forbidden += [name for name in under(*others) if not _is_client(name)]
        if parts[-1] == "client":
            forbidden += under(*TORCH, "services.engine")
    elif part == "gateway":
        forbidden += under(*TORCH, "services.engine", "services.wire")
        forbidden += [name for name in under(*(f"services.{name}" for name in SERVICES)) if not _is_client(name)]
    return sorted(forbidden)


def _is_client(name: str) -> bool:
    """services.verifier.client and what is taken from it; the bare package names no code."""
    parts = name.split(".")
    return len(parts) == 2 or parts[2] == "client"


@pytest.mark.parametrize("tree", ["gateway", "services"])
def test_imports_keep_to_the_architecture(repository: Path, tree: str) -> None:
    files = sorted((repository / tree).rglob("*.py"))
    assert len(files) > 5
    found = {
        str(path.relative_to(repository)): wrong
        for path in files
        if (wrong := violations(str(path.relative_to(repository)), path.read_text()))
    }
    assert not found


@pytest.mark.parametrize("tree", ["gateway", "services"])
def test_packages_have_empty_init_files(repository: Path, tree: str) -> None:
    inits = sorted((repository / tree).rglob("__init__.py"))
    assert inits
    assert [path for path in inits if path.read_text().strip()] == []
    folders = {path.parent for path in (repository / tree).rglob("*.py")}
    assert folders == {path.parent for path in inits}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("services/common/server.py", "import torch"),
        ("services/common/server.py", "from paceline.v1 import model_pb2"),
        ("services/engine/engine.py", "from services.verifier.client import VerifierClient"),
        ("services/engine/engine.py", "def f():\n    import grpc"),
        ("services/draft/servicer.py", "from services.verifier.target_role import TargetRole"),
        ("services/verifier/client.py", "from services.engine.engine import Engine"),
        ("services/verifier/servicer.py", "import gateway.relay"),
        ("services/prefix_cache/tiers.py", "import safetensors"),
        ("services/adapter_store/checks.py", "from peft import LoraConfig"),
        ("services/adapter_store/checks.py", "import torch"),
        ("services/adapter_store/checks.py", "from services.engine.adapter import read_adapter"),
        ("services/adapter_store/client.py", "import safetensors"),
        ("gateway/relay.py", "import torch.nn"),
        ("gateway/relay.py", "from services.verifier import target_role"),
    ],
)
def test_the_check_finds_violations(path: str, source: str) -> None:
    assert violations(path, source)


def test_the_check_allows_clients() -> None:
    assert not violations("gateway/relay.py", "from services.verifier.client import VerifierClient")
