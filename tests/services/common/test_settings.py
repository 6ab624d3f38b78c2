"""Settings come from the command line and the environment; whatever is misspelt is an error."""

import pytest
from pydantic import ValidationError

from services.verifier.settings import VerifierSettings


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_VERIFIER_MODEL", "from-environment")
    monkeypatch.setenv("PACELINE_VERIFIER_SERVER__PORT", "7999")
    settings = VerifierSettings.load(["--engine.model=from-arguments", "--telemetry.log-level=DEBUG"])
    assert settings.model == "from-arguments"
    assert settings.server.port == 7999
    assert settings.telemetry.log_level == "DEBUG"


@pytest.mark.parametrize("variable", ["PACELINE_VERIFIER_MODLE", "PACELINE_VERIFIER_SERVER__PROT"])
def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValidationError):
        VerifierSettings.load(["--engine.model=m"])


def test_a_misspelt_argument_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        VerifierSettings.load(["--engine.model=m", "--prot=1"])
    assert "--prot" in capsys.readouterr().err


def test_values_out_of_range_are_errors() -> None:
    for argument in ("--server.port=99999", "--engine.num-threads=0", "--engine.dtype=float8"):
        with pytest.raises(ValidationError):
            VerifierSettings.load(["--engine.model=m", argument])


def test_settings_do_not_change_after_start() -> None:
    settings = VerifierSettings.load(["--engine.model=m"])
    with pytest.raises(ValidationError):
        settings.model = "other"
