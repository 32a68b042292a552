"""Memory of the process, which frameworks on a CPU ask for anew in every call."""

import ctypes
import platform

# Parameters of mallopt(3), as glibc numbers them.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Lets the process keep what it frees, for what it asks for next.

    On Linux large maps otherwise go back to the system after each call of a model, which hands out
    empty pages for the next: that can take a third of a batch's time, whatever the library. Call
    this once, after the import and before the first model: what threads have begun they go on with.
    It concerns the whole process, whose memory then stays at its peak.

    Returns:
        Whether the process does so from now on. Not on other systems, nor with a C library other
        than glibc; nothing changes there.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One heap for all threads, for those of threads are small; nothing beside it; never trimmed.
    settings = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
