"""How the C library's allocator treats the memory that an encoder frees."""

import ctypes

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have what is freed kept for the next allocation, whatever its size.

    glibc gives blocks over 32 MB back to the system, as an encoder's operations on a CPU
    use them, and has every page of the next one zeroed: a seventh of the encoder's time.
    The process then holds what it once needed at most. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # every block is of the heap,
        mallopt(_TRIM_THRESHOLD, _MOST)  # and the heap stays as it is
