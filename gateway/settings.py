"""Settings of the gateway process. Environment: PACELINE_GATEWAY_..."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.settings import ProcessSettings, ServerSettings


class ModelSettings(BaseModel):
    """One model that is served: its verifiers run the same target, its drafts propose for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, description="Name by which clients ask for the model.")
    tokenizer: str = Field(description="Folder or hub id with the model's tokenizer.json.")
    verifiers: tuple[str, ...] = Field(("127.0.0.1:7102",), min_length=1, description="gRPC targets of verifiers.")
    drafts: tuple[str, ...] = Field((), description="gRPC targets of draft services; none: no speculation.")
    draft_tokens: int = Field(
        16, ge=1, le=64, description="Most proposed tokens a round verifies where a request does not say."
    )
    public_prefixes: tuple[str, ...] = Field((), description="Beginnings of prompts that all callers share.")
    public_system_messages: tuple[str, ...] = Field((), description="System messages of chats that all callers share.")


class GatewaySettings(ProcessSettings):
    """One gateway serves one model or more."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_GATEWAY_")

    server: ServerSettings = ServerSettings(port=7100, max_message_bytes=32 << 20)
    models: tuple[ModelSettings, ...] = Field(min_length=1, description="What is served; ids are unique.")
    prefix_caches: tuple[str, ...] = Field(
        (), description="gRPC targets of prefix caches, for callers' questions to them."
    )
    adapter_stores: tuple[str, ...] = Field((), description="gRPC targets of adapter stores; none: no adapters.")
    signing_key: SecretStr | None = Field(
        None,
        description="Ed25519 private key (64 hexadecimal digits) of tokens for prefix cache and adapter store; none: "
        "no tokens.",
    )
    token_seconds: float = Field(600.0, gt=0, description="Life of such a token.")
    tenant_header: str | None = Field(
        None, description="Metadata entry in which the proxy in front names the caller; none: all callers are one."
    )
    max_prompt_bytes: int = Field(4 << 20, ge=1, description="Longest prompt or conversation, in bytes of UTF-8.")
    max_active_requests: int = Field(128, ge=1, description="Requests served at once; more wait.")
    max_queued_requests: int = Field(512, ge=0, description="Requests that wait; more are refused.")
    resume_seconds: float = Field(
        60.0, ge=0, description="How long a stream looks for a verifier after losing its own."
    )

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"models must have different ids, got {ids}")
        return self
