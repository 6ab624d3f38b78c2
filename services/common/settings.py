"""Settings: one frozen object a process, from command line, file and environment. A misspelt name is an error."""

import argparse
import json
import os
import re
import sys
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, Secret, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from paceline.errors import InvalidArgumentError
from services.common.secret_url import SecretUrl
from services.common.tls_settings import ServerTls


class TraceExporter(StrEnum):
    """Where spans go."""

    NONE = "none"
    CONSOLE = "console"
    OTLP = "otlp"


class MetricExporter(StrEnum):
    """Where metrics go."""

    NONE = "none"
    CONSOLE = "console"
    OTLP = "otlp"
    PROMETHEUS = "prometheus"
    BOTH = "both"
    """To a collector, and to Prometheus when it asks."""


class LogFormat(StrEnum):
    """How a log line looks."""

    JSON = "json"
    TEXT = "text"


_OF_KUBERNETES = re.compile(
    r"([A-Z0-9]+_)*(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables that Kubernetes sets for a service whose name begins like the process': PACELINE_GATEWAY_SERVICE_HOST,
PACELINE_VERIFIER_CODE_PORT, ..."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Part):
    """The gRPC server of a process."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grace_seconds: float = Field(10.0, ge=0, description="How long running streams may take to finish on SIGTERM.")
    max_message_bytes: int = Field(64 << 20, ge=1 << 16, description="Largest message, in bytes.")
    max_concurrent_rpcs: int | None = Field(None, ge=1, description="More calls at once are refused by gRPC.")
    first_message_seconds: float = Field(60.0, gt=0, description="Longest wait for the first message of a call.")
    tls: ServerTls | None = Field(None, description="What is encrypted with; none: connections are in plaintext.")
    reflection: bool = Field(True, description="Serves gRPC reflection.")
    channelz: bool = Field(False, description="Serves channelz.")


class TelemetrySettings(_Part):
    """Logs, traces and metrics of a process."""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severe level logged.")
    log_format: LogFormat = Field(LogFormat.JSON, description="json or text.")
    traces: TraceExporter = Field(TraceExporter.NONE, description="Where spans go.")
    trace_share: float = Field(
        1.0, ge=0, le=1, description="Share of requests that are traced where whoever sent one has not decided it."
    )
    metrics: MetricExporter = Field(MetricExporter.NONE, description="Where metrics go.")
    otlp_endpoint: SecretUrl = Field("http://127.0.0.1:4317", validate_default=True, description="OTLP/gRPC collector.")
    prometheus_host: str = Field("127.0.0.1", description="Address that Prometheus reads.")
    prometheus_port: int = Field(9464, ge=0, le=65535, description="Port that Prometheus reads; 0 takes a free one.")

    @property
    def is_read_by_prometheus(self) -> bool:
        """Whether the process listens for Prometheus."""
        return self.metrics in (MetricExporter.PROMETHEUS, MetricExporter.BOTH)


class ProcessSettings(BaseSettings):
    """Base of every process's settings. A subclass sets `env_prefix`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,
    )

    server: ServerSettings
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def model_in_telemetry(self) -> str:
        """Id of the model that the process runs; empty where it runs none, or several."""
        return ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_environment(cls, values: Any) -> Any:
        """Refuses variables under the prefix that no setting reads: they are misspelt."""
        prefix = cls.model_config.get("env_prefix", "")
        known = {name.upper() for name in cls.model_fields}
        for variable in os.environ:
            if prefix and variable.startswith(prefix):
                name = variable.removeprefix(prefix)
                if name.split("__")[0].upper() not in known and not _OF_KUBERNETES.fullmatch(name):
                    raise ValueError(f"environment variable {variable} names no setting")
        return values

    @classmethod
    def load(cls, arguments: list[str] | None = None) -> Self:
        """Reads the command line (default: the process's), then the file that its `--settings` names, then the
        environment.

        The file is JSON, or TOML by its name; "-" is standard input. Raises InvalidArgumentError for what it is not.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--settings", metavar="FILE")
        own, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
        written = {} if own.settings is None else _read(own.settings)
        source: CliSettingsSource[Any] = CliSettingsSource(cls, cli_parse_args=rest, cli_exit_on_error=False)
        return cls(_cli_settings_source=source, **written)

    @classmethod
    def load_or_end(cls) -> Self:
        """What `load` reads for this process, which ends with a sentence when it cannot be had."""
        try:
            return cls.load()
        except ValidationError as error:
            said = in_words(error)
        except InvalidArgumentError as error:
            said = error.violations[0].description
        except SettingsError as error:
            said = f"{str(error).removeprefix('error parsing CLI: ')}; --help lists what there is"
        process = cls.model_config.get("env_prefix", "").removeprefix("PACELINE_").strip("_").lower().replace("_", "-")
        sys.exit(f"settings of {process}: {said}")

    def to_json(self) -> str:
        """All settings, secrets included, as `load` reads them from standard input."""
        return json.dumps(self.model_dump(), default=_revealed)


def in_words(error: ValidationError) -> str:
    """What is wrong with settings, in a line that shows none of them."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, "))))
        for each in error.errors(include_url=False, include_input=False)
    )


def _read(source: str) -> dict[str, Any]:
    """Settings of a file."""
    kind = "TOML" if source.endswith(".toml") else "JSON"
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        written: Any = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except OSError as error:
        raise InvalidArgumentError("--settings", f"{source} cannot be read: {error.strerror}") from error
    except ValueError as error:  # Not of the kind, or not even text.
        raise InvalidArgumentError("--settings", f"{source} is no {kind}: {error}") from error
    if not isinstance(written, dict):
        raise InvalidArgumentError("--settings", f"{source} holds no settings; names and values are expected")
    return written


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret | SecretStr):
        return value.get_secret_value()
    return str(value)
