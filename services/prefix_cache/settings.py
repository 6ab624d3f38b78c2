"""Settings of the prefix-cache process. Environment: PACELINE_PREFIX_CACHE_..."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.secret_url import SecretUrl
from services.common.settings import ProcessSettings, ServerSettings, TelemetrySettings


class PrefixCacheSettings(ProcessSettings):
    """Tiers and their bounds, in bytes."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_PREFIX_CACHE_")

    server: ServerSettings = ServerSettings(port=7103)
    telemetry: TelemetrySettings = TelemetrySettings(prometheus_port=9467)
    token_keys: tuple[str, ...] = Field(
        min_length=1, description="Ed25519 public keys (64 hexadecimal digits each) of the gateways that mint tokens."
    )
    memory_bytes: int = Field(2 << 30, ge=1 << 20, description="Memory for blocks.")
    disk_folder: Path | None = Field(None, description="Folder of the disk tier; none: no disk tier.")
    disk_bytes: int = Field(32 << 30, ge=1 << 20, description="Disk space for blocks.")
    redis_url: SecretUrl | None = Field(None, description="Valkey or Redis server (redis://...); none: no such tier.")
    redis_cluster: bool = Field(False, description="The server is a cluster's.")
    redis_timeout_seconds: float = Field(1.0, gt=0, description="Longest wait for an answer of Redis.")
    quota_bytes: int = Field(1 << 30, ge=1 << 20, description="Most bytes of one namespace in each tier.")
    idle_seconds: float = Field(7 * 24 * 3600.0, gt=0, description="Blocks that nobody used for so long are let go.")
    max_block_bytes: int = Field(64 << 20, ge=1, description="Largest block.")
    max_incoming_bytes: int = Field(
        128 << 20, ge=1, description="Blocks of one namespace that have begun to come and are not whole yet."
    )
    stall_seconds: float = Field(30.0, gt=0, description="Longest wait for the next piece of a block to keep.")
    max_pending_bytes: int = Field(256 << 20, ge=0, description="Blocks on their way to further tiers; more are not.")
    niceness: int = Field(0, ge=0, le=19, description="Makes the process give way to models on the same cores.")
