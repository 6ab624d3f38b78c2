"""Settings of the verifier process. Environment: PACELINE_VERIFIER_..."""

import os
from enum import StrEnum
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServerSettings, TelemetrySettings
from services.engine.config import EngineConfig
from services.model_server.settings import ModelServerSettings


class Speculation(StrEnum):
    """Who says whether to speculate."""

    MEASURED = "measured"
    """Measurement: where it pays."""
    ALWAYS = "always"
    """Nobody: always, for measuring and testing."""
    NEVER = "never"
    """Nobody: never."""


def _verdict_file() -> str:
    """In the user's cache folder (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(cache) / "paceline" / "speculation.json")


class VerifierSettings(ModelServerSettings):
    """One verifier runs one target model."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_VERIFIER_")

    server: ServerSettings = ServerSettings(port=7102)
    telemetry: TelemetrySettings = TelemetrySettings(prometheus_port=9466)
    draft: EngineConfig | None = Field(
        None,
        description="A draft in this process, which proposes in place of draft services: where both "
        "have the same cores.",
    )
    suffix_drafting: bool = Field(
        True, description="Proposes what followed when the last tokens occurred before, in the text or in recent ones."
    )
    speculation: Speculation = Field(
        Speculation.MEASURED,
        description="Whether to speculate: measured, where it is faster; always and never are for comparing.",
    )
    verdict_file: str = Field(
        default_factory=_verdict_file,
        description="Where is kept what was measured of speculation, for the next start; empty: nowhere.",
    )
