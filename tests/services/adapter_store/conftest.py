"""Places that keep adapters: a folder, and object storage that speaks S3."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from services.adapter_store.folder_objects import FolderObjects, own_folder
from services.adapter_store.objects import Objects
from services.adapter_store.s3_objects import S3Objects
from services.adapter_store.settings import AdapterStoreSettings
from support.adapters import Store, contents, running_store
from support.s3_server import BUCKET, s3_server, s3_settings
from support.served import SERVER

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a server that speaks S3, with a bucket."""
    with s3_server() as address:
        yield address


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings of where adapters are kept."""
    if request.param == "folder":
        return {}
    return s3_settings(request.getfixturevalue("s3"), tmp_path.name)


@pytest.fixture
async def store(place: dict[str, Any], tmp_path: Path) -> AsyncIterator[Store]:
    async with running_store(tmp_path, **place) as running:
        yield running


@pytest.fixture
def objects(place: dict[str, Any], tmp_path: Path) -> Iterator[Objects]:
    settings = AdapterStoreSettings(token_keys=("00",), folder=tmp_path, server=SERVER, **place)
    with own_folder(tmp_path) as incoming:
        yield S3Objects.connect(settings) if place else FolderObjects(tmp_path, incoming)


@pytest.fixture
def objects_of(place: dict[str, Any], tmp_path: Path, s3: str) -> Any:
    """Names of what is kept under a prefix, looked at from outside."""

    async def found(prefix: str) -> list[str]:
        if not place:
            return sorted(name for name in contents(tmp_path) if name.startswith(prefix))
        outside = S3Store(BUCKET, prefix=tmp_path.name, endpoint=s3, client_options={"allow_http": True}, **KEYS)
        return sorted([meta["path"] async for batch in obstore.list(outside, prefix) for meta in batch])

    return found
