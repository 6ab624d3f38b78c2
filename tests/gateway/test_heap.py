"""What large requests took goes back to the system, whatever else is kept."""

import subprocess
import sys
from pathlib import Path

import pytest

_MEASURED = """
import sys

import psutil

from gateway import heap

if sys.argv[1] == "keeping little":
    heap.keep_little()
before = psutil.Process().memory_info().rss
bytearray(20 << 20)  # From now on the C library takes what is smaller from among the small pieces.
large, small = [], []
for _ in range(20):
    large.append(bytearray(b"x") * (10 << 20))
    small.append(bytearray(100 << 10))
large.clear()
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries are let be")
@pytest.mark.parametrize(("way", "least", "most"), [("as it is", 150e6, 400e6), ("keeping little", 0, 50e6)])
def test_large_pieces_go_back_though_small_ones_are_kept_behind_them(
    repository: Path, way: str, least: float, most: float
) -> None:
    command = [sys.executable, "-c", _MEASURED, way]
    run = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True)
    assert least <= int(run.stdout) <= most
