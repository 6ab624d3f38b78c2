"""A server that speaks S3, with a bucket."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import ThreadedMotoServer

BUCKET = "adapters"


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address, while the block lasts."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
    try:
        yield address
    finally:
        server.stop()


def s3_settings(address: str, prefix: str) -> dict[str, Any]:
    """Settings of an adapter store that keeps its adapters there."""
    return {
        "s3_url": f"s3://{BUCKET}/{prefix}", "s3_endpoint": address, "s3_region": "us-east-1",
        "s3_access_key": "key", "s3_secret_key": "secret", "s3_allow_http": True,
    }  # fmt: skip
