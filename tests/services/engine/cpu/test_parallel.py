"""Compiled code that is kept on disk is that of the sources as they are; threads wait without taking others' cores."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from numba.np.numpy_support import carray

from services.engine.cpu import parallel
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


_ARGUMENTS = np.dtype([("counter", np.intp), ("taken", np.intp), ("most", np.int64)])


@parallel.kernel()
def _claim_all(address: Any) -> None:
    """Every thread notes itself at each number that it claims; the first begins when the others have all there is."""
    a = carray(address, (1,), _ARGUMENTS)[0]
    taken = carray(parallel.pointer(a.taken), (a.most,), np.int64)
    if parallel.thread_number() == 0:
        parallel.barrier()
    number = parallel.claim(a.counter)
    while number < a.most:
        taken[number] += 1 + parallel.thread_number()
        number = parallel.claim(a.counter)
    if parallel.thread_number() != 0:
        parallel.barrier()


def test_threads_claim_each_number_once_and_do_not_wait_for_one_that_is_late() -> None:
    counter, taken, arguments = np.zeros(1, np.int64), np.zeros(5000, np.int64), np.zeros((), _ARGUMENTS)
    arguments["counter"], arguments["taken"] = counter.ctypes.data, taken.ctypes.data
    arguments["most"] = len(taken)
    parallel.run(_claim_all, arguments.ctypes.data, 3)
    assert set(taken) <= {2, 3}


async def test_threads_of_a_served_engine_spin_for_a_moment_only(target_folder: str) -> None:
    set_by_users = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    environment = {name: value for name, value in os.environ.items() if name not in set_by_users}
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
