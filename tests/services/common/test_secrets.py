"""No secret of any process is ever shown: not in what is logged at start, not in an error."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, Secret, SecretStr, ValidationError

from gateway.settings import GatewaySettings
from services.adapter_store.settings import AdapterStoreSettings
from services.common.settings import ProcessSettings
from services.draft.settings import DraftSettings
from services.prefix_cache.settings import PrefixCacheSettings
from services.verifier.settings import VerifierSettings

PROCESSES: list[type[ProcessSettings]] = [
    AdapterStoreSettings, DraftSettings, GatewaySettings, PrefixCacheSettings, VerifierSettings,
]  # fmt: skip
SUSPICIOUS = ("url", "endpoint", "dsn", "secret", "password", "credential", "signing", "seal", "access_key")
PUBLIC = {"s3_url"}
"""Refuses a user and a query."""
STORE = {"token_keys": ("ab",), "folder": "f"}


def strings_in(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Names and types of all fields, of parts too."""
    for name, field in model.model_fields.items():
        yield path + name, field.annotation
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from strings_in(part, f"{path}{name}.")


@pytest.mark.parametrize("process", PROCESSES)
def test_whatever_may_hold_a_secret_is_typed_so(process: type[ProcessSettings]) -> None:
    for path, annotation in strings_in(process):
        name = path.rpartition(".")[2]
        if any(word in name for word in SUSPICIOUS) and name not in PUBLIC:
            kinds = [kind for kind in (annotation, *get_args(annotation)) if kind is not type(None)]
            origins = [getattr(kind, "__origin__", kind) for kind in kinds]
            assert any(isinstance(kind, type) and issubclass(kind, Secret | SecretStr) for kind in origins), path


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@cache:6379/0", "redis://user:hunter2@cache:6379/0", "rediss://hunter2@cache:6379/0",
        "redis://cache:6379/0?password=hunter2", "redis://user:p@hunter2@cache:6379/0",
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_secrets(url: str) -> None:
    settings = [
        PrefixCacheSettings(token_keys=("ab",), redis_url=url),
        AdapterStoreSettings(**STORE, s3_endpoint=url),
        VerifierSettings(engine={"model": "m"}, telemetry={"otlp_endpoint": url}),
    ]
    for made in settings:
        for shown in (made.model_dump_json(), repr(made), str(made), str(made.model_dump())):
            assert "hunter2" not in shown
            assert "cache:6379" in shown
        assert url in json.loads(made.to_json()).values() or url in made.to_json()


@pytest.mark.parametrize("url", ["redis://:hunter2/x@cache:6379", "redis://:1/hunter2@cache", "hunter2:p@cache:6379"])
def test_an_address_that_cannot_be_read_is_not_shown(url: str) -> None:
    for make in (
        lambda: PrefixCacheSettings(token_keys=("ab",), redis_url=url),
        lambda: AdapterStoreSettings(**STORE, s3_endpoint=url),
        lambda: AdapterStoreSettings(**STORE, s3_url="s3://key:hunter2@bucket/prefix"),
    ):
        with pytest.raises(ValidationError) as raised:
            make()
        assert "hunter2" not in f"{raised.value!s}{raised.value!r}"


def test_an_address_without_secrets_is_shown_as_it_is() -> None:
    for url in ("redis://cache:6379/0", "http://127.0.0.1:4317", "collector:4317"):
        settings = PrefixCacheSettings(token_keys=("ab",), redis_url=url)
        assert f'"redis_url":"{url}"' in settings.model_dump_json()
