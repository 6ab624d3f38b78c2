"""Settings come from the command line and the environment; whatever is misspelt is an error."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from paceline.errors import InvalidArgumentError
from services.adapter_store.settings import AdapterStoreSettings
from services.engine.config import Dtype, EngineConfig
from services.verifier.settings import VerifierSettings

STORE = ["--folder=f", '--token-keys=["ab"]']


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_VERIFIER_ENGINE__MODEL", "from-environment")
    monkeypatch.setenv("PACELINE_VERIFIER_SERVER__PORT", "7999")
    settings = VerifierSettings.load(["--engine.model=from-arguments", "--telemetry.log-level=DEBUG"])
    assert settings.engine.model == "from-arguments"
    assert settings.server.port == 7999
    assert settings.telemetry.log_level == "DEBUG"


@pytest.mark.parametrize(
    "variable", ["PACELINE_VERIFIER_MODLE", "PACELINE_VERIFIER_SERVER__PROT", "PACELINE_VERIFIER_PORTS"]
)
def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValidationError):
        VerifierSettings.load(["--engine.model=m"])


def test_a_misspelt_argument_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--prot"):
        VerifierSettings.load(["--engine.model=m", "--prot=1"])


def test_values_out_of_range_are_errors() -> None:
    for argument in ("--server.port=99999", "--engine.num-threads=0", "--engine.dtype=float8"):
        with pytest.raises(ValidationError):
            VerifierSettings.load(["--engine.model=m", argument])


def test_settings_do_not_change_after_start() -> None:
    settings = VerifierSettings.load(["--engine.model=m"])
    with pytest.raises(ValidationError):
        settings.model_id = "other"


def test_variables_that_kubernetes_sets_for_a_service_of_that_name_are_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_one = ("PORT", "PORT_7102_TCP", "PORT_7102_TCP_ADDR", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC")
    for name in (*of_one, "CODE_PORT", "LARGE_CODE_SERVICE_PORT_GRPC"):
        monkeypatch.setenv(f"PACELINE_VERIFIER_{name}", "tcp://10.0.0.1:7102")
    assert VerifierSettings.load(["--engine.model=m"]).server.port == 7102
    monkeypatch.setenv("PACELINE_VERIFIER_SERVR__PORT", "1")
    with pytest.raises(ValueError, match="SERVR__PORT names no setting"):
        VerifierSettings.load(["--engine.model=m"])


def test_one_setting_of_a_server_leaves_its_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AdapterStoreSettings.load([*STORE, "--server.host=0.0.0.0"]).server.max_message_bytes == 8 << 20
    monkeypatch.setenv("PACELINE_ADAPTER_STORE_SERVER__GRACE_SECONDS", "3")
    settings = AdapterStoreSettings.load([*STORE, "--server.port=1"]).server
    assert (settings.port, settings.grace_seconds, settings.max_message_bytes) == (1, 3.0, 8 << 20)


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_settings_come_from_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / f"settings.{kind}"
    written = {"engine": {"model": "written", "num_threads": 3}, "server": {"port": 1}}
    toml = 'engine = {model = "written", num_threads = 3}\nserver = {port = 1}\n'
    path.write_text(json.dumps(written) if kind == "json" else toml)
    monkeypatch.setenv("PACELINE_VERIFIER_ENGINE__NUM_THREADS", "4")
    monkeypatch.setenv("PACELINE_VERIFIER_ENGINE__BLOCK_SIZE", "32")
    settings = VerifierSettings.load([f"--settings={path}", "--server.port=2"])
    assert settings.engine.model == "written"
    assert (settings.engine.num_threads, settings.engine.block_size, settings.server.port) == (3, 32, 2)


def test_settings_survive_the_way_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(model="m", dtype=Dtype.BFLOAT16)
    settings = VerifierSettings(engine=config, prefix_cache_seal_key="ab" * 32, token_keys=("cd" * 32,))
    monkeypatch.setattr("sys.stdin", io.StringIO(settings.to_json()))
    assert VerifierSettings.load(["--settings", "-"]) == settings


@pytest.mark.parametrize("text", ['{"engin": {}}', '{"engine": {"model": "m", "modle": 1}}'])
def test_a_file_that_names_what_is_no_setting_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011
        VerifierSettings.load([f"--settings={tmp_path / 'settings.json'}"])


def test_an_error_does_not_show_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        VerifierSettings.load(["--engine.model=m", "--prefix-cache-seal-key=0123456789secret"])
    assert "0123456789secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.json", None, "cannot be read: No such file"),
        ("broken.json", "{", "is no JSON"),
        ("broken.toml", "a = ", "is no TOML"),
        ("bytes.json", b"\xff\xfe", "is no JSON"),
        ("list.json", "[1]", "holds no settings"),
    ],
)
def test_a_file_that_holds_no_settings_is_one_sentence(
    tmp_path: Path, name: str, text: str | bytes | None, says: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidArgumentError, match=says):
        VerifierSettings.load(["--settings", str(path)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("paceline", "serve", "gateway", "--settings", "missing.json"), "missing.json cannot be read"),
        (("gateway", "--models", "3"), "models"),
        (("gateway", "--modles", "3"), "unrecognized arguments: --modles 3; --help"),
    ],
)
def test_a_process_that_is_given_no_settings_ends_with_a_sentence(arguments: tuple[str, ...], says: str) -> None:
    run = subprocess.run([sys.executable, "-m", *arguments], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("settings of gateway: ")
    assert says in run.stderr
    assert run.stderr.count("\n") == 1
