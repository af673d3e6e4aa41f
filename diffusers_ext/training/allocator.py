"""How this process holds memory on a CPU: what tensors free is kept for the tensors of the next step."""

from __future__ import annotations

import ctypes

# mallopt(3) of the GNU C library: parameters by number.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to the most it ever held at once, instead of returning it.

    The GNU C library returns large blocks to the system when they are freed, and every step of a training run takes
    them anew: thousands of page faults, during which the system clears what the step overwrites at once. Results and
    the largest memory in use stay as they are; what other processes get back before this one ends becomes less.

    Returns:
        Whether the C library takes the settings; another than GNU's is left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # none, or no way to look: macOS, musl, Windows
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
