"""Settings that every process with an engine shares."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, Secret

from services.common.access import Access
from services.common.settings import ProcessSettings
from services.common.tenant_token import ENGINE, TokenVerifier
from services.engine.config import Device, Dtype, EngineConfig


class EngineSettings(ProcessSettings):
    """Which model runs here, and on what. Counts are tokens unless the name says otherwise."""

    model: str = Field(description="Folder or hub id of a causal language model that transformers loads.")
    model_id: str | None = Field(None, description="Id by which clients name the model; default: the folder's name.")
    device: Device = Field(Device.AUTO, description="auto takes a GPU when there is one.")
    dtype: Dtype = Field(Dtype.AUTO, description="Data type of the weights; auto takes the checkpoint's.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads of one forward; default: all cores.")
    max_context_tokens: int | None = Field(None, ge=2, description="Prompt and output together; default: the model's.")
    max_step_tokens: int = Field(512, ge=16, description="Most rows of one forward.")
    max_sequences: int = Field(64, ge=1, description="Most sequences that hold KV at once; others wait.")
    max_open_sequences: int = Field(512, ge=1, description="Most open streams; more are refused.")
    kv_bytes: int = Field(1 << 30, ge=1 << 20, description="Memory for KV blocks, in bytes.")
    block_size: int = Field(16, ge=1, description="Tokens of one KV block; must divide 128.")
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
    max_adapters: int = Field(8, ge=1, description="Adapter slots: adapters that are in memory, and in use, at once.")
    adapter_seconds: float = Field(
        10.0, gt=0, description="How long a stream waits for its adapter, a free slot included."
    )
    max_adapter_rank: int = Field(64, ge=1, description="Largest rank of an adapter.")
    trust_remote_code: bool = Field(False, description="Runs code that comes with a model. Only for models you trust.")

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
        folder = Path(self.model)
        return self.model_id or (folder.resolve().name if folder.is_dir() else self.model)

    def engine_config(self) -> EngineConfig:
        """The engine's share of the settings."""
        return EngineConfig(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            num_threads=self.num_threads,
            max_context_tokens=self.max_context_tokens,
            max_step_tokens=self.max_step_tokens,
            max_sequences=self.max_sequences,
            block_size=self.block_size,
            kv_bytes=self.kv_bytes,
            trust_remote_code=self.trust_remote_code,
            max_adapters=self.max_adapters if self.adapter_store else 0,
            max_adapter_rank=self.max_adapter_rank,
        )
