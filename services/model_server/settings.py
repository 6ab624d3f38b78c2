"""Settings that every process with an engine shares."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, Secret

from services.common.access import Access
from services.common.settings import ProcessSettings
from services.common.tls_settings import ChannelTls
from services.common.tokens import ENGINE, TokenVerifier
from services.engine.config import EngineConfig

_ADAPTER_SLOTS = 8


def name_of(model: str) -> str:
    """What a model is called where nobody says otherwise: as its folder, or its hub id."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else model


class ModelServerSettings(ProcessSettings):
    """Which model runs here, on what, and which services stand beside it."""

    engine: EngineConfig
    model_id: str | None = Field(None, description="Id by which clients name the model; default: the folder's name.")
    max_open_sequences: int = Field(512, ge=1, description="Most open streams; more are refused.")
    channel_tls: ChannelTls | None = Field(
        None, description="What calls to other services are encrypted with; none: they are in plaintext."
    )
    prefix_cache: str | None = Field(None, description="gRPC target of a prefix cache; none: own blocks only.")
    prefix_cache_seal_key: Secret[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] | None = Field(
        None,
        description="Secret (64 hexadecimal digits) by which engines of a model know each other's blocks; none: what a "
        "prefix cache makes up is believed.",
    )
    max_unpublished_bytes: int = Field(
        256 << 20, ge=0, description="Computed blocks on their way to the prefix cache; more are not published."
    )
    token_keys: tuple[str, ...] = Field(
        (),
        description="Ed25519 public keys (64 hexadecimal digits each) of the gateways that mint tokens; none: what a "
        "stream says of its tenant is believed.",
    )
    adapter_store: str | None = Field(None, description="gRPC target of an adapter store; none: no adapters.")
    adapter_seconds: float = Field(
        10.0, gt=0, description="How long a stream waits for its adapter, a free slot included."
    )

    @property
    def seal_key(self) -> bytes | None:
        """The secret as 32 bytes."""
        return (
            None if self.prefix_cache_seal_key is None else bytes.fromhex(self.prefix_cache_seal_key.get_secret_value())
        )

    @property
    def access(self) -> Access | None:
        """What checks the tenants of streams; None without keys."""
        return Access(TokenVerifier(self.token_keys, ENGINE)) if self.token_keys else None

    @property
    def public_model_id(self) -> str:
        """The id that clients use."""
        return self.model_id or name_of(self.engine.model)

    @property
    def model_in_telemetry(self) -> str:
        """The id that clients use."""
        return self.public_model_id

    @property
    def num_adapter_slots(self) -> int:
        """Adapters that may be in memory, and in use, at once."""
        if self.adapter_store is None:
            return 0
        return _ADAPTER_SLOTS if self.engine.max_adapters is None else self.engine.max_adapters

    def engine_config(self) -> EngineConfig:
        """The engine's configuration, completed."""
        return self.engine.model_copy(update={"max_adapters": self.num_adapter_slots})
