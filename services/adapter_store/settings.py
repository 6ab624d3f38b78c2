"""Settings of the adapter-store process. Environment: PACELINE_ADAPTER_STORE_..."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.secret_url import SecretUrl
from services.common.settings import ProcessSettings, ServerSettings, TelemetrySettings


class AdapterStoreSettings(ProcessSettings):
    """Where adapters lie, and the bounds of uploads."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_ADAPTER_STORE_")

    server: ServerSettings = ServerSettings(port=7104, max_message_bytes=8 << 20)
    telemetry: TelemetrySettings = TelemetrySettings(prometheus_port=9468)
    token_keys: tuple[str, ...] = Field(
        min_length=1, description="Ed25519 public keys (64 hexadecimal digits each) of the gateways that mint tokens."
    )
    folder: Path = Field(
        description="Folder of this process alone: of the adapters, or with s3_url of uploads on their way."
    )
    s3_url: str | None = Field(
        None,
        pattern="^s3://[^/@?]+(/[^?]*)?$",
        description="Bucket and prefix (s3://bucket/prefix) of the adapters; none: folder.",
    )
    s3_endpoint: SecretUrl | None = Field(None, description="Address of the object storage; none: that of Amazon S3.")
    s3_region: str | None = Field(None, description="Region of the bucket.")
    s3_access_key: SecretStr | None = Field(None, description="Access key; none: as the environment has it.")
    s3_secret_key: SecretStr | None = Field(None, description="Secret key; none: as the environment has it.")
    s3_allow_http: bool = Field(False, description="Allows an endpoint without TLS.")
    max_adapter_bytes: int = Field(300_000_000, ge=1 << 10, description="Largest adapter, both files together.")
    max_rank: int = Field(64, ge=1, le=1024, description="Largest rank.")
    max_adapters_per_namespace: int = Field(100, ge=1, description="Most labels of one namespace.")
    max_uploads: int = Field(4, ge=1, description="Uploads at once; more wait.")
    max_uploads_per_namespace: int = Field(2, ge=1, description="Uploads of one namespace at once; more wait.")
    upload_wait_seconds: float = Field(
        30.0, ge=0, description="How long an upload waits for its turn before it is asked to try again."
    )
    upload_seconds: float = Field(600.0, gt=0, description="Longest upload.")
    stall_seconds: float = Field(30.0, gt=0, description="Longest wait for the next bytes of an upload.")
    min_upload_bytes_per_second: float = Field(
        16 << 10, gt=0, description="Slowest upload; stall_seconds beside that are allowed to each."
    )
    keep_seconds: float = Field(
        3600.0, ge=0, description="How long an adapter without a label can be fetched; longer than any upload."
    )
    sweep_seconds: float = Field(3600.0, gt=0, description="Time between two sweeps of what nobody needs any more.")
