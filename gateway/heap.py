"""What the C library keeps of freed memory: of requests of megabytes, hundreds of megabytes for ever if it is let.

See https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html. Elsewhere nothing of it is done.
"""

import contextlib
import ctypes

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Names of parameters, as malloc.h has them."""
_LARGE_BYTES = 1 << 20
_MAX_ARENAS = 2


def keep_little() -> None:
    """Has large pieces go back to the system as soon as they are freed, and threads share what is kept of small ones.

    Left alone, the library takes whatever is smaller than the largest piece that was ever freed from among the small
    ones, and returns none of it. This is to be called before there are threads.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_ARENA_MAX, _MAX_ARENAS)


def give_back() -> None:
    """Returns to the system what was freed in small pieces: some hundred megabytes after a large text."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
