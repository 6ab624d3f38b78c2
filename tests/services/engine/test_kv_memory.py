"""What KV is given it takes at once: a process that has started does not grow."""

import subprocess
import sys

_MEASURED = """
import psutil
import torch

from services.engine.kv_cache import KVCache, KVShape

before = psutil.Process().memory_info().rss
kv_cache = KVCache([KVShape(2, 64, 64)] * 4, 1024, 16, torch.float32, torch.device("cpu"))
taken = psutil.Process().memory_info().rss - before
kv_cache.write_blocks(list(range(1024)), [b"x" * kv_cache.block_bytes] * 1024)
print(taken, 1024 * kv_cache.block_bytes)
"""


def test_kv_takes_its_memory_when_it_is_made() -> None:
    run = subprocess.run([sys.executable, "-c", _MEASURED], check=True, capture_output=True, text=True)
    taken, reserved = map(int, run.stdout.split())
    assert reserved == 64 << 20
    assert taken > 0.95 * reserved
