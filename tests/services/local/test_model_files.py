"""A model may be called by a known name or by its GGUF file; what is loaded is a folder."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from services.common.gguf import conversion_of
from services.local import model_files
from services.local.errors import LaunchError
from services.local.model_files import KnownModel, folder_of
from services.local.pair import Pair, read_models
from support.gguf_files import write_gguf

PACKAGED = KnownModel("./not-there.whl", "packaged_model", "tiny.gguf", "a tiny one")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(model_files, "KNOWN", {"packaged": PACKAGED})
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds a model."""
    folder = tmp_path / "packages" / PACKAGED.module
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    return write_gguf(folder / PACKAGED.file)


async def test_what_is_no_gguf_file_is_what_it_is(tmp_path: Path) -> None:
    assert await folder_of("org/model") == "org/model"
    assert await folder_of(str(tmp_path)) == str(tmp_path)


async def test_a_file_is_converted_and_keeps_its_name(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    pair = Pair(model=str(file), draft=str(file))
    pair.check()
    ready = await pair.ready()
    assert ready.model == ready.draft == str(conversion_of(file))
    assert (Path(ready.model) / "config.json").exists()
    assert pair.public_id == ready.public_id == "tiny"


async def test_a_known_name_means_the_file_in_its_package(package: Path) -> None:
    assert await folder_of("packaged") == str(conversion_of(package))


async def test_a_known_name_that_is_not_here_says_how_to_get_it() -> None:
    said = r"packaged is not on this machine: `paceline get packaged` fetches it \(a tiny one\)"
    with pytest.raises(LaunchError, match=said):
        await folder_of("packaged")
    with pytest.raises(LaunchError, match=said):
        Pair(model="packaged").check()


async def test_a_conversion_that_fails_is_told_in_a_sentence(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", more={"attention.sliding_window": 16})
    with pytest.raises(LaunchError, match=r"^.*tiny.gguf says llama.attention.sliding_window = 16, which"):
        await folder_of(str(file))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LaunchError, match="is not a whole GGUF file"):
        Pair(model=str(file)).check()


async def test_a_conversion_that_is_given_up_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    made = conversion_of(file).parent
    asked = asyncio.create_task(folder_of(str(file)))
    while not (made.is_dir() and any(path.is_dir() for path in made.iterdir())):
        assert not asked.done()
        await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    assert not [path for path in made.iterdir() if path.is_dir()]


async def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def conversion_of(file: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(model_files, "conversion_of", conversion_of)
    with pytest.raises(LaunchError, match=r"tiny.gguf cannot be read: .*Permission denied"):
        await folder_of(str(write_gguf(tmp_path / "tiny.gguf")))


def test_a_file_of_models_may_name_one_beside_it(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nmodel = "tiny.gguf"\n')
    (pair,) = read_models(models)
    assert (pair.model, pair.public_id) == (str(file), "tiny")


def test_the_command_prints_the_folder(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    told = CliRunner().invoke(app, ["get", str(file)])
    assert told.exit_code == 0
    assert told.stdout.strip() == str(conversion_of(file))
    assert f"Ready: paceline up --model {file}" in told.stderr.replace("\n", "")


def test_the_command_lists_names_and_refuses_others(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["get"]).stdout == "packaged: a tiny one\n"
    refused = CliRunner().invoke(app, ["get", "nobody"])
    assert refused.exit_code == 1
    assert "nobody is neither a GGUF file nor one of packaged" in refused.stderr


def test_a_package_that_pip_cannot_install_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["get", "packaged"])
    assert refused.exit_code == 1
    assert "pip could not install ./not-there.whl" in refused.stderr.replace("\n", " ")
