"""Settings of the draft process. Environment: PACELINE_DRAFT_..."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServerSettings, TelemetrySettings
from services.engine.config import EngineConfig
from services.model_server.settings import ModelServerSettings


class DraftSettings(ModelServerSettings):
    """One draft service runs one draft model."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_DRAFT_")

    server: ServerSettings = ServerSettings(port=7101)
    telemetry: TelemetrySettings = TelemetrySettings(prometheus_port=9465)
    max_proposal_tokens: int = Field(16, ge=1, description="Most tokens of one proposal, whatever a stream asks for.")
    ahead: bool = Field(
        True, description="Drafts on while a proposal is being verified. Off where draft and verifier share cores."
    )
    max_branches: int = Field(
        16, ge=0, description="Most other ways of going on that one step prepares beside the draft's own."
    )

    def engine_config(self) -> EngineConfig:
        """As every engine's, for guesses."""
        return super().engine_config().model_copy(update={"is_draft": True})
