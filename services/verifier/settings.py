"""Settings of the verifier process. Environment: PACELINE_VERIFIER_..."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServerSettings, TelemetrySettings
from services.model_server.settings import ModelServerSettings


class VerifierSettings(ModelServerSettings):
    """One verifier runs one target model."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_VERIFIER_")

    server: ServerSettings = ServerSettings(port=7102)
    telemetry: TelemetrySettings = TelemetrySettings(prometheus_port=9466)
    suffix_drafting: bool = Field(
        True, description="Proposes what followed when the last tokens occurred before, in the text or in recent ones."
    )
