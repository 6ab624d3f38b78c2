"""The Dockerfile, which nothing here can build: what can be known of it without."""

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from services.local.child import GRPC_EXPERIMENTS
from support.deployed import METRICS_PORTS, PORTS

HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.fixture(scope="module")
def stages(repository: Path) -> dict[str, tuple[str, str]]:
    """What each stage begins from, and its lines."""
    text = (repository / "deploy" / "Dockerfile").read_text()
    found = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    heads = [re.match(r"(\S+) AS (\S+)\n", stage) for stage in found]
    return {head[2]: (head[1], stage) for head, stage in zip(heads, found, strict=True) if head}


def test_messages_take_the_same_way_as_on_one_machine(stages: dict[str, tuple[str, str]]) -> None:
    assert f" GRPC_EXPERIMENTS={GRPC_EXPERIMENTS} " in stages["process"][1]


async def test_the_linter_finds_nothing(repository: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        HADOLINT, "--no-color", "deploy/Dockerfile", cwd=repository, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")


@pytest.mark.parametrize("process", PORTS)
def test_each_process_has_an_image_that_is_nobody_and_says_how_it_is(
    stages: dict[str, tuple[str, str]], process: str
) -> None:
    base, lines = stages[process]
    assert f'ENTRYPOINT ["paceline", "serve", "{process}"]' in lines
    assert f"EXPOSE {PORTS[process]} {METRICS_PORTS[process]}\n" in lines
    assert f"PACELINE_ADDRESS=127.0.0.1:{PORTS[process]} " in lines
    assert 'CMD ["paceline", "health"]' in lines
    assert f"PACELINE_{process.upper().replace('-', '_')}_SERVER__HOST=0.0.0.0" in lines
    assert "USER 10001:10001" in stages[base][1]
    assert base == ("with-torch" if process in ("verifier", "draft") else "without-torch")


def test_no_image_without_an_engine_sees_torch(stages: dict[str, tuple[str, str]]) -> None:
    assert "torch" not in stages["libraries"][1].partition("#")[0]
    assert "--from=libraries " in stages["without-torch"][1]
    assert "--from=engine-libraries " in stages["with-torch"][1]


def test_an_image_has_what_the_extra_takes(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    base, extras = project["dependencies"], project["optional-dependencies"]

    def printed(extra: str) -> list[str]:
        run = [sys.executable, "deploy/requirements.py", "pyproject.toml", extra]
        return subprocess.run(run, cwd=repository, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]

    assert printed("serve") == base + extras["serve"]
    assert set(printed("engine")) == {*base, *extras["serve"], *extras["engine"]} - {"paceline[serve]"}


def test_what_an_image_copies_is_not_ignored(repository: Path, stages: dict[str, tuple[str, str]]) -> None:
    kept = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        line.split()[1:-1] for _, text in stages.values() for line in text.splitlines() if line.startswith("COPY")
    ]
    for name in {name for names in copied for name in names if not name.startswith(("-", "/"))}:
        assert name in kept
        assert (repository / name).exists()
