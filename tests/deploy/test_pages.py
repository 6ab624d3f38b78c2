"""Pages for operators: what they have one type is what there is."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from paceline.cli.app import app
from support.chart import Rendered
from support.deployed import load

PAGES = ("two-machines", "containers", "kubernetes", "envoy", "scaling")
_MADE_BY_READERS = {"deploy/.env", "deploy/ca.pem", "deploy/certificates", "deploy/certificates/ca.pem"}
"""What the commands of a page make before they name it."""


def commands(page: str, repository: Path) -> Iterator[list[str]]:
    """The command lines of a page, split as a shell does."""
    text = (repository / "docs" / f"{page}.md").read_text()
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\||\$\(", line):
                try:
                    words = shlex.split(part.strip().rstrip(")"), comments=True)
                except ValueError:  # Half of a quotation, which a shell reads with the next line.
                    continue
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words


@pytest.mark.parametrize("page", PAGES)
def test_processes_take_what_a_page_says(page: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(page, repository):
        if words[:2] == ["paceline", "serve"] and words[-1] != "...":
            settings = load(words[2], {}, words[3:], monkeypatch)
            assert settings.server.tls is not None


def test_the_page_of_two_machines_is_about_three_processes(repository: Path) -> None:
    served = [words[2] for words in commands("two-machines", repository) if words[:2] == ["paceline", "serve"]]
    assert served == ["verifier", "gateway", "draft"]


@pytest.mark.parametrize("page", PAGES)
def test_there_are_such_commands_and_options(page: str, repository: Path) -> None:
    for words in commands(page, repository):
        if words[0] != "paceline" or words[1] == "serve":
            continue
        names = [word for word in words[1:] if not word.startswith("-")]
        for depth in (2, 1):
            shown = CliRunner().invoke(app, [*names[:depth], "--help"], terminal_width=200)
            if shown.exit_code == 0:
                break
        assert shown.exit_code == 0, words
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in shown.output, (words, option)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str, repository: Path) -> None:
    text = (repository / "docs" / f"{page}.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (repository / "docs" / link).exists(), link
    for path in set(re.findall(r"\bdeploy/[\w./-]+\w", text)) - _MADE_BY_READERS:
        assert (repository / path).exists(), path


def test_the_values_of_the_page_are_values(repository: Path) -> None:
    text = (repository / "docs" / "kubernetes.md").read_text()
    (values,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rendered = Rendered(yaml.safe_load(values))
    named = set(
        re.findall(r"(?:deployment/|statefulset )(paceline-[\w-]+)", (repository / "docs/scaling.md").read_text())
    )
    assert named == {"paceline-edge", "paceline-gateway", "paceline-verifier-code"}
    assert named <= {each["metadata"]["name"] for each in rendered.of("Deployment", "StatefulSet")}
    secrets = {
        volume["secret"]["secretName"]
        for _, pod in rendered.pods()
        for volume in pod["spec"]["volumes"]
        if "secret" in volume
    }
    identities = ("gateway", "verifier", "draft", "prefix-cache", "adapter-store", "client", "edge")
    assert secrets == {f"paceline-{identity}-tls" for identity in identities}
