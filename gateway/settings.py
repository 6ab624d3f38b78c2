"""Settings of the gateway process. Environment: PACELINE_GATEWAY_..."""

from decimal import Decimal
from ipaddress import ip_network
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.folders import data_folder
from services.common.secret_url import SecretUrl
from services.common.settings import ProcessSettings, ServerSettings
from services.common.tls_settings import ChannelTls

_DATABASES = ("sqlite", "postgresql", "postgres")
_FILE = "gateway.sqlite"


def user_database() -> str:
    """Address of the database among the user's data."""
    return f"sqlite:///{data_folder() / _FILE}"


def _network(written: str) -> str:
    ip_network(written)
    return written


def _database(url: SecretUrl) -> SecretUrl:
    if urlsplit(url.get_secret_value()).scheme not in _DATABASES:
        raise ValueError("is neither sqlite:///FILE nor postgresql://USER:PASSWORD@HOST/NAME")
    return url


class PriceSettings(BaseModel):
    """What a model's tokens cost: amounts of the gateway's currency a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Decimal = Field(ge=0, decimal_places=9, description="Tokens of prompts.")
    cached: Decimal | None = Field(
        None, ge=0, decimal_places=9, description="Tokens of prompts that were found computed; default: as others."
    )
    completion: Decimal = Field(ge=0, decimal_places=9, description="Produced tokens.")
    adapter_surcharge: float = Field(0.0, ge=0, le=100, description="Share added where an adapter is used; 0.5: half.")
    batch_discount: float = Field(0.5, ge=0, le=1, description="Share taken off in batches; 0.5: half.")


class ModelSettings(BaseModel):
    """One model that is served: its verifiers run the same target, its drafts propose for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=256, description="Name by which clients ask for the model.")
    tokenizer: str = Field(description="Folder or hub id with the model's tokenizer.json.")
    verifiers: tuple[str, ...] = Field(("127.0.0.1:7102",), min_length=1, description="gRPC targets of verifiers.")
    drafts: tuple[str, ...] = Field((), description="gRPC targets of draft services; none: no speculation.")
    draft_tokens: int = Field(
        16, ge=1, le=64, description="Most proposed tokens a round verifies where a request does not say."
    )
    generation_config: bool = Field(
        True, description="Where a request is silent, samples as the model's generation_config.json says."
    )
    public_prefixes: tuple[str, ...] = Field((), description="Beginnings of prompts that all callers share.")
    public_system_messages: tuple[str, ...] = Field((), description="System messages of chats that all callers share.")
    prices: PriceSettings | None = Field(None, description="What its tokens cost; none: usage is counted, not priced.")


class GatewaySettings(ProcessSettings):
    """One gateway serves one model or more."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_GATEWAY_")

    server: ServerSettings = ServerSettings(port=7100, max_message_bytes=32 << 20)
    models: tuple[ModelSettings, ...] = Field(min_length=1, description="What is served; ids are unique.")
    channel_tls: ChannelTls | None = Field(
        None, description="What calls to other services are encrypted with; none: they are in plaintext."
    )
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
    proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="Addresses or networks of proxies whose tenant_header is believed once there are API keys."
    )
    anonymous: bool = Field(False, description="Serves who has no API key, on any address: all of them are one tenant.")
    key_seconds: float = Field(2.0, gt=0, description="How long a revoked API key may still be taken for valid.")
    key_outage_seconds: float = Field(
        60.0, ge=0, description="How long known API keys hold while the database is away."
    )
    database: Annotated[SecretUrl, AfterValidator(_database)] | None = Field(
        None,
        description="sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/NAME that gateways share; none: a file "
        "among the user's data.",
    )
    max_batch_streams: int = Field(
        32, ge=0, description="Items of batches that run at once, on what other requests leave idle; 0: none run here."
    )
    batch_lease_seconds: float = Field(
        30.0, gt=0, description="After how long an item of a batch is given to another gateway when its own is gone."
    )
    batch_days: float = Field(30.0, gt=0, description="How long a batch and its results are kept after its end.")
    webhook_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="Networks that webhooks may go to although they are not public, and by http."
    )
    ledger_days: float = Field(
        90.0, ge=1, description="How long the ledger knows each request; the sums by day are kept for ever."
    )
    currency: str = Field("USD", min_length=1, max_length=8, description="What prices are in.")
    max_prompt_bytes: int = Field(4 << 20, ge=1, description="Longest prompt or conversation, in bytes of UTF-8.")
    max_active_requests: int = Field(
        128, ge=1, description="Requests served at once, one of n choices counted n times; more wait."
    )
    max_queued_requests: int = Field(512, ge=0, description="Requests that wait; more are refused.")
    unread_seconds: float = Field(
        60.0, gt=0, description="How long a client may take nothing of its stream before the request is ended."
    )
    resume_seconds: float = Field(
        60.0, ge=0, description="How long a stream looks for a verifier after losing its own."
    )

    audit_share: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Share of finished requests that is computed once more in idle time, without speculation, and "
        "compared; nobody pays for it.",
    )
    audit_tokens: int = Field(
        1 << 18, ge=0, description="Most tokens, prompts included, that are kept in memory until they are compared."
    )

    @property
    def database_url(self) -> str:
        """Where the database is."""
        if self.database is not None:
            return self.database.get_secret_value()
        return user_database()

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"models must have different ids, got {ids}")
        return self
