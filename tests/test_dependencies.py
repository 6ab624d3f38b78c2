"""What is imported is declared: nothing that only another package happened to bring."""

import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from test_imports import imported

OURS = {"paceline", "gateway", "services", "models"}


def normal(name: str) -> str:
    """The name of a distribution as all spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def declared(repository: Path) -> Mapping[str, set[str]]:
    """Names of what is declared for a plain installation and for each extra, with what it includes."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        found = [re.split(r"[\[<>=!~; ]", line)[0] for line in lines]
        return {normal(name) for name in found} - {"paceline"}

    base, extras = names(project["dependencies"]), project["optional-dependencies"]
    serve = base | names(extras["serve"])
    return {"base": base, "serve": serve, "engine": serve | names(extras["engine"])}


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("paceline/**/*.py", "base"), ("gateway/**/*.py", "serve"), ("services/**/*.py", "engine")],
)
def test_what_is_imported_is_declared(
    repository: Path, declared: Mapping[str, set[str]], pattern: str, kind: str
) -> None:
    brought, known = packages_distributions(), OURS | sys.stdlib_module_names
    missing: dict[str, set[str]] = {}
    files = [path for path in repository.glob(pattern) if "_pb2" not in path.name]
    assert len(files) > 20
    for path in files:
        for module in {name.partition(".")[0] for name in imported(path.read_text())} - known:
            if not {normal(name) for name in brought.get(module, ())} & declared[kind]:
                missing.setdefault(module, set()).add(path.relative_to(repository).as_posix())
    assert not missing
