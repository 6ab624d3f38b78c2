"""Settings of the draft process. Environment: PACELINE_DRAFT_..."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServerSettings
from services.engine.settings import EngineSettings


class DraftSettings(EngineSettings):
    """One draft service runs one draft model."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_DRAFT_")

    server: ServerSettings = ServerSettings(port=7101)
    max_proposal_tokens: int = Field(16, ge=1, description="Most tokens of one proposal, whatever a stream asks for.")
