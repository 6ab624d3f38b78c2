"""How fast this machine reads memory: what no product with weights can be faster than."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

_BYTES = 1 << 30
_THREADS = 2
_REPEATS = 5


def read_bandwidth() -> float:
    """Bytes a second by two threads over a gibibyte that was written: the best of several readers, and of five times.

    Memory that was never written is one page in cache, and seems twice as fast.
    """
    written = np.random.default_rng(0).integers(1, 1 << 62, _BYTES // 8, np.int64)
    halves = np.split(written, _THREADS)
    tensor = torch.from_numpy(written)
    torch.set_num_threads(_THREADS)
    with ThreadPoolExecutor(_THREADS) as pool:

        def threads_of_numpy() -> None:
            list(pool.map(np.bitwise_xor.reduce, halves))

        def sum_of_torch() -> None:
            tensor.sum()

        def largest_of_torch() -> None:
            tensor.view(torch.float32).view(1 << 10, -1).amax(1)

        seconds = [_time(reader) for reader in (threads_of_numpy, sum_of_torch, largest_of_torch)]
    return _BYTES / min(seconds)


def _time(read: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - started)
    return best
