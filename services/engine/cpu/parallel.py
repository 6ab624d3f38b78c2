"""Compiled kernels on the very OpenMP threads that torch computes on.

A pool of its own would fight torch's for the cores, because idle OpenMP threads spin. So the OpenMP library that torch
brings is asked to run the kernel, through the entry point that compilers call for a parallel region (`GOMP_parallel` of
libgomp's ABI). Where torch brings another library, kernels run on the calling thread.
"""

import ctypes
from collections import abc
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from llvmlite import binding
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from services.engine.cpu.kinds import kinds

_Count = ctypes.CFUNCTYPE(ctypes.c_int)
_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _load_openmp() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent
    for path in (*folder.glob("lib/libgomp*"), *folder.glob("../torch.libs/libgomp*")):
        library = ctypes.CDLL(str(path))
        library.GOMP_parallel.argtypes = [_Kernel, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        return library
    return None


_openmp = _load_openmp()
_counts: dict[str, Any] = {
    "omp_get_thread_num": _Count(lambda: 0), "omp_get_num_threads": _Count(lambda: 1), "GOMP_barrier": _Count(lambda: 0)
}  # fmt: skip
"""Functions that kernels call, by symbol; kept here because compiled code holds their addresses only."""
for _name, _alone in _counts.items():
    _function = getattr(_openmp, _name) if _openmp else _alone
    binding.add_symbol(f"paceline_{_name}", ctypes.cast(_function, ctypes.c_void_p).value)

binding.add_symbol("paceline_write", ctypes.cast(ctypes.CDLL(None).write, ctypes.c_void_p).value)

thread_number: Any = types.ExternalFunction("paceline_omp_get_thread_num", types.int32())
"""A kernel calls this for the number of its thread among the region's."""
number_of_threads: Any = types.ExternalFunction("paceline_omp_get_num_threads", types.int32())
"""A kernel calls this for how many threads the region has."""
barrier: Any = types.ExternalFunction("paceline_GOMP_barrier", types.void())
"""A kernel calls this to wait until all threads of the region have called it."""

write: Any = types.ExternalFunction("paceline_write", types.intp(types.intp, types.voidptr, types.uintp))
"""A kernel calls this to write so many bytes at an address to a file descriptor (POSIX, write)."""


@intrinsic
def pointer(_typing: Any, _address: Any) -> Any:
    """Makes an address a pointer, in a kernel."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@intrinsic
def _claim(_typing: Any, _address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        counter = builder.inttoptr(arguments[0], arguments[0].type.as_pointer())
        return builder.atomic_rmw("add", counter, arguments[0].type(1), "monotonic")

    return types.intp(types.intp), generate


claim: Any = _claim
"""A kernel calls this to add one to the integer at an address and have what it was: no two threads get the same."""


def kernel(**options: Any) -> abc.Callable[[abc.Callable[[Any], None]], Any]:
    """Compiles a function of the address of its arguments for `run`; the code is kept on disk until a source changes.

    numba compares the function's own file only, and not those of what it calls: so its name says what all of them are.
    """

    def compiled(function: Any) -> Any:
        function.__qualname__ += f"_{state_of(Path(__file__).parent)}"
        made: Any = cfunc(types.void(types.voidptr), cache=True, **options)(function)
        taken: Any = _Kernel(made.address)
        taken.made = made  # It is kept for as long as its address is.
        return taken

    return compiled


def state_of(folder: Path) -> str:
    """A digest of the sources in a folder, and of the instructions that code is generated for."""
    sources = [source.read_bytes() for source in sorted(folder.glob("*.py"))]
    return blake3(b"".join([*sources, repr(sorted(kinds())).encode()])).hexdigest(length=8)


def run(compiled: Any, arguments: int, num_threads: int) -> None:
    """Runs a `kernel` on so many threads at once and waits for all. `arguments` is an address."""
    if num_threads > 1 and _openmp is not None:
        _openmp.GOMP_parallel(compiled, arguments, num_threads, 0)
    else:
        compiled(arguments)
