"""What the README has people type: its lines of Python are typed, and its commands have the options that it names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from paceline.cli.app import app

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for _, block in BLOCKS
        for line in block.splitlines()
        if line.startswith(".venv/bin/paceline ")
    }
)


def test_its_lines_of_python_pass_the_strictest_check(tmp_path: Path) -> None:
    (written,) = [block for language, block in BLOCKS if language == "python"]
    first, *rest = written.strip().split("\n\n")
    body = "\n".join("    " + line for line in "\n\n".join(rest).splitlines())
    (tmp_path / "mine.py").write_text(
        f"{first}\nfrom paceline import SyncClient\n\n\nasync def main() -> None:\n{body}\n\n\n"
        "def blocking() -> None:\n"
        '    with SyncClient("127.0.0.1:7100") as client:\n'
        '        for event in client.chat([{"role": "user", "content": "hi"}], max_tokens=64):\n'
        "            text: str = event.delta.text\n"
        "            print(text)\n"
        "        number: str = client.tokenize(text)\n"
    )
    # From a folder of its own: what is installed counts as typed only by its py.typed.
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (error, summary) = done.stdout.splitlines()
    assert error.startswith("mine.py:16: error: ")  # The last line is wrong, which shows that types are seen.
    assert 'has type "list[int]"' in error or '"list[int]", variable has type "str"' in error
    assert summary.startswith("Found 1 error"), done.stdout


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_there_with_their_options(line: str) -> None:
    assert len(COMMANDS) > 8
    command, arguments = get_command(app), shlex.split(line)[1:]
    context = typer.Context(command, info_name="paceline")
    while isinstance(command, typer.core.TyperGroup):
        name, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, name
        context = typer.Context(command, info_name=name, parent=context)
    command.parse_args(context, arguments)
