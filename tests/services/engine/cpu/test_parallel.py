"""Compiled code that is kept on disk is that of the sources as they are; threads wait without taking others' cores."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from services.engine.cpu.lora_kernel import add_shares
from services.engine.cpu.parallel import state_of


def test_another_state_of_any_source_is_another_name_of_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "called.py").write_text("ONE = 1")
    (tmp_path / "kernel.py").write_text("from called import ONE")
    before = state_of(tmp_path)
    assert state_of(tmp_path) == before
    (tmp_path / "called.py").write_text("ONE = 2")
    assert state_of(tmp_path) != before


def test_kernels_are_kept_by_the_state_of_their_folder() -> None:
    folder = Path(__file__).parents[4] / "services" / "engine" / "cpu"
    assert add_shares.made.__qualname__.endswith(state_of(folder))


async def test_threads_of_a_served_engine_spin_for_a_moment_only(target_folder: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline", "serve", "verifier", "--engine.model", target_folder, "--server.port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"},
    )
    assert process.stdout is not None
    try:
        said = [line.strip() async for line in _until(process.stdout, b"OPENMP DISPLAY ENVIRONMENT END")]
    finally:
        process.kill()
        await process.wait()
    assert b"GOMP_SPINCOUNT = '2000'" in said


async def _until(lines: AsyncIterator[bytes], last: bytes) -> AsyncIterator[bytes]:
    async for line in lines:
        yield line
        if last in line:
            return
