"""The engine is a library: token ids in, token ids out. It knows no tenants and no transport."""

import subprocess
import sys


def test_the_engine_loads_neither_tokens_nor_transport() -> None:
    code = "import sys, services.engine.engine; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert not {"jwt", "cryptography", "grpc", "google.protobuf"} & set(loaded)
